/// <reference types="jest" />
import type { Reproduction } from '@matforge/core';

/** Declares the test that runs a method's claim and requires it to hold. */
export function testReproduction(method: string, reproduce: () => Promise<Reproduction>): void {
  test(`the claim of ${method} holds`, async () => {
    const { claim, held, rows } = await reproduce();
    expect({ claim, held, rows }).toEqual({ claim, held: true, rows });
    expect(rows.length).toBeGreaterThan(0);
  }, 120_000);
}
