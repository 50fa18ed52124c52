import { join } from 'node:path';
import { adapterTensors, deltas, option, random, refuse, setAdapterTensors } from '@matforge/core';
import type * as Seal from '@matforge/seal';
import * as tf from '@tensorflow/tfjs';
import * as z from 'zod';
import { trainingOptions } from '../optimizers.ts';
import { importPackage } from '../packages.ts';
import { defineStage } from '../stage.ts';
import { score, trainOn } from '../training.ts';
import { dataOf, modelOf, round } from './train.ts';

/** What the owner keeps: the claim, by layer, and the adapter's name. */
interface Watermark {
  readonly name: string;
  readonly claim: Seal.Claim;
}

const WATERMARK = 'watermark';

/** Entangles an adapter with two secret passports. */
export const watermark = defineStage({
  name: 'watermark',
  about: 'turns the adapter into one that carries a SEAL watermark, and trains it in',
  needs: ['data', 'model', 'adapter'],
  gives: ['watermark'],
  options: z.object({
    data: z.string().min(1),
    /** The owner's secret: the seed of both passports. */
    secret: option.seed(),
    /** Rank of the marked adapter, at least that of the adapter's update. */
    rank: option.rank().default(8),
    ...trainingOptions,
  }),
  methods: ({ secret, rank }) => [{ name: 'seal', options: { secret, rank } }],
  async run(state, options, context) {
    const model = modelOf(state);
    const data = dataOf(state, options.data);
    const seal = await importPackage<typeof Seal>('seal', context.from);
    const updates = deltas(model, state.adapter as string);
    try {
      await seal.embed(model, updates, {
        name: WATERMARK,
        rank: options.rank,
        alpha: options.rank,
        secret: options.secret,
        seed: context.seed,
      });
    } finally {
      tf.dispose(Object.values(updates));
    }
    const outcome = await trainOn(model, data, options, context, { label: 'embed the watermark', key: 'watermark' });
    const claim = seal.claimOf(model, WATERMARK);
    await seal.saveRelease(model, WATERMARK, join(context.directory, 'adapters', 'released'), { overwrite: true });
    await seal.saveClaim(claim, join(context.directory, 'secret', 'claim.safetensors'));
    const { metric, value } = await score(model, data, context.signal);
    await context.report('watermark', {
      [metric]: round(value),
      steps: outcome.steps,
      seconds: round(outcome.seconds, 1),
      claimDigest: await seal.claimDigest(claim),
    });
    context.tell({ type: 'log', text: `watermark embedded: ${metric} ${(100 * value).toFixed(1)} %` });
    return { ...state, adapter: WATERMARK, watermark: { name: WATERMARK, claim } satisfies Watermark };
  },
  async restore(state, options, context) {
    const model = modelOf(state);
    const seal = await importPackage<typeof Seal>('seal', context.from);
    const updates = deltas(model, state.adapter as string);
    await seal.embed(model, updates, {
      name: WATERMARK,
      rank: options.rank,
      alpha: options.rank,
      secret: options.secret,
      seed: context.seed,
    });
    tf.dispose(Object.values(updates));
    const claim = await seal.loadClaim(join(context.directory, 'secret', 'claim.safetensors'));
    setAdapterTensors(model, WATERMARK, seal.claimTensors(claim));
    return { ...state, adapter: WATERMARK, watermark: { name: WATERMARK, claim } satisfies Watermark };
  },
});

/** Checks the owner's claim against the model, and that forged claims fail. */
export const verify = defineStage({
  name: 'verify',
  about: "verifies the owner's claim, and that forged keys fail",
  needs: ['data', 'model', 'watermark'],
  options: z.object({
    data: z.string().min(1),
    /** Seed of the forger. */
    forger: option.seed().default(666),
  }),
  methods: () => [{ name: 'seal' }],
  async run(state, { data: name, forger }, context) {
    const model = modelOf(state);
    const data = dataOf(state, name);
    const { name: adapter, claim } = state.watermark as Watermark;
    const seal = await importPackage<typeof Seal>('seal', context.from);
    const suspect = deltas(model, adapter);
    const original = cloneTensors(adapterTensors(model, adapter));
    // The metric of a claim is the model's with the claimant's factors and passport in the adapter's place.
    const metricOf = (claimed: Seal.Claim) => async (passport: 0 | 1) => {
      setAdapterTensors(model, adapter, seal.claimTensors(claimed));
      seal.setPassport(model, adapter, passport);
      const { value } = await score(model, data, context.signal);
      seal.setPassport(model, adapter, 0);
      setAdapterTensors(model, adapter, original);
      return value;
    };
    const verdict = async (claimed: Seal.Claim) =>
      seal.verifyOwnership(claimed, suspect, { metric: metricOf(claimed) });
    const wrongKey = seal.wrongKey(claim, forger);
    const forged = seal.forge(claim, random(forger));
    try {
      const claims = {
        owner: await verdict(claim),
        'another key': await verdict(wrongKey),
        'forged passports': await verdict(forged),
      };
      const rows = Object.entries(claims).map(([claimant, result]) => ({
        claimant,
        'bits matched': `${result.bits.matched} of ${result.bits.total}`,
        'log10 p': round(result.bits.log10p, 1),
        'fidelity gap': round(result.fidelity.gap),
        verdict: result.accepted ? 'accepted' : 'rejected',
      }));
      context.tell({ type: 'table', title: 'Ownership claims', rows });
      await context.report('verification', rows);
      if (!claims.owner.accepted) refuse('verify', "the owner's claim was rejected; train the watermark for longer");
      if (claims['another key'].accepted || claims['forged passports'].accepted)
        refuse('verify', 'a forged claim was accepted');
    } finally {
      tf.dispose([...Object.values(suspect), ...Object.values(original).flatMap((tensors) => Object.values(tensors))]);
      seal.disposeClaim(wrongKey);
      seal.disposeClaim(forged);
    }
    return state;
  },
  restore: async (state) => state,
});

function cloneTensors(tensors: Record<string, Record<string, tf.Tensor>>): Record<string, Record<string, tf.Tensor>> {
  return Object.fromEntries(
    Object.entries(tensors).map(([site, byName]) => [
      site,
      Object.fromEntries(Object.entries(byName).map(([name, tensor]) => [name, tf.clone(tensor)])),
    ]),
  );
}
