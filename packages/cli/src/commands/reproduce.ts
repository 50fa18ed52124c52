import { reproduction } from '@matforge/pipeline';
import { EXIT, type Session } from '../program.ts';

/** `matforge reproduce <method>` */
export async function reproduce({ output, from }: Session, method: string): Promise<number> {
  output.note(`running the claim of ${method}; this takes up to a minute`);
  const started = performance.now();
  const result = await reproduction(method, from);
  const seconds = (performance.now() - started) / 1000;
  output.result({ method, ...result, seconds }, () => {
    output.table(
      result.rows.map((row) =>
        Object.fromEntries(
          Object.entries(row).map(([key, value]) => [
            key,
            typeof value === 'number' ? Number(value.toPrecision(4)) : value,
          ]),
        ),
      ),
    );
    output.line();
    output.line(result.details);
    output.line(`claim: ${result.claim}`);
    output.line(`${result.held ? 'held' : 'DID NOT HOLD'} (${seconds.toFixed(1)} s)`);
  });
  return result.held ? EXIT.done : EXIT.claimFailed;
}
