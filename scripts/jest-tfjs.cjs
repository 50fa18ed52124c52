module.exports = globalThis.__matforgeTf;
