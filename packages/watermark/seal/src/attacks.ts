export const attacks = {};
