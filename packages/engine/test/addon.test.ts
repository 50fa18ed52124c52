import { openAddon } from '../src/addon.ts';

describe('the optional addon', () => {
  const before = process.env.MATFORGE_NATIVE;
  afterEach(() => {
    if (before === undefined) delete process.env.MATFORGE_NATIVE;
    else process.env.MATFORGE_NATIVE = before;
    jest.resetModules();
    jest.restoreAllMocks();
    jest.dontMock('@matforge/engine-native');
  });

  const heap = () => new Uint8Array(64);
  const mock = (addon: object) => {
    process.env.MATFORGE_NATIVE = '1';
    jest.doMock('@matforge/engine-native', () => addon, { virtual: true });
  };

  it('is left alone when it is switched off', async () => {
    const openNative = jest.fn();
    mock({ openNative });
    process.env.MATFORGE_NATIVE = '0';
    expect(await openAddon(heap, {})).toBeNull();
    expect(openNative).not.toHaveBeenCalled();
  });

  it('is bound to the heap where it works', async () => {
    const opened = { kernels: {}, isa: 'neon' };
    const openNative = jest.fn(() => opened);
    mock({ openNative });
    const reference = {};
    expect(await openAddon(heap, reference)).toBe(opened);
    expect(openNative).toHaveBeenCalledWith(heap, reference);
  });

  it('says once why it does not work, and goes on without it', async () => {
    const warn = jest.spyOn(console, 'warn').mockImplementation(() => {});
    mock({ openNative: () => null, whyNot: () => 'no binary' });
    expect(await openAddon(heap, {})).toBeNull();
    expect(await openAddon(heap, {})).toBeNull();
    expect(warn.mock.calls).toEqual([
      [expect.stringMatching(/@matforge\/engine-native is installed and not in use: no binary/)],
    ]);
  });

  it('is not missed where it is not installed', async () => {
    process.env.MATFORGE_NATIVE = '1';
    jest.doMock('@matforge/engine-native', () => {
      throw new Error('Cannot find package');
    });
    expect(await openAddon(heap, {})).toBeNull();
  });
});
