import { findAddon } from '../src/addon.ts';

describe('the optional addon', () => {
  const before = process.env.MATFORGE_NATIVE;
  afterEach(() => {
    if (before === undefined) delete process.env.MATFORGE_NATIVE;
    else process.env.MATFORGE_NATIVE = before;
    jest.resetModules();
    jest.restoreAllMocks();
    jest.dontMock('@matforge/engine-native');
  });

  const mock = (addon: object) => {
    process.env.MATFORGE_NATIVE = '1';
    jest.doMock('@matforge/engine-native', () => addon, { virtual: true });
  };

  it('is left alone when it is switched off', async () => {
    const whyNot = jest.fn();
    mock({ whyNot });
    process.env.MATFORGE_NATIVE = '0';
    expect(await findAddon()).toBeNull();
    expect(whyNot).not.toHaveBeenCalled();
  });

  it.each(['bun', 'deno'])('is left alone on %s, which it would end', async (name) => {
    const whyNot = jest.fn();
    mock({ whyNot });
    const own = Object.getOwnPropertyDescriptor(process, 'versions')!;
    Object.defineProperty(process, 'versions', { ...own, value: { ...process.versions, [name]: '1.0.0' } });
    try {
      expect(await findAddon()).toBeNull();
    } finally {
      Object.defineProperty(process, 'versions', own);
    }
    expect(whyNot).not.toHaveBeenCalled();
  });

  it('is found where it works', async () => {
    const openNative = jest.fn();
    mock({ openNative, whyNot: () => undefined });
    expect((await findAddon())?.openNative).toBe(openNative);
  });

  it('says once why it does not work, and goes on without it', async () => {
    const warn = jest.spyOn(console, 'warn').mockImplementation(() => {});
    mock({ openNative: () => null, whyNot: () => 'no binary' });
    expect(await findAddon()).toBeNull();
    expect(await findAddon()).toBeNull();
    expect(warn.mock.calls).toEqual([
      [expect.stringMatching(/@matforge\/engine-native is installed and not in use: no binary/)],
    ]);
  });

  it('is not missed where it is not installed', async () => {
    process.env.MATFORGE_NATIVE = '1';
    jest.doMock('@matforge/engine-native', () => {
      throw new Error('Cannot find package');
    });
    expect(await findAddon()).toBeNull();
  });
});
