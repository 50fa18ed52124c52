const steps: string[] = [];

/** Runs `body` under a name: whoever has to refuse a read in it can say which step asked for the values. */
export function during<T>(step: string, body: () => T): T {
  steps.push(step);
  try {
    return body();
  } finally {
    steps.pop();
  }
}

/** The steps that run now, outermost first. */
export const currentSteps = (): readonly string[] => steps;
