module.exports = globalThis.__matforgeTfWasm;
