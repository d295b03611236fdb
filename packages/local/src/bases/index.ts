export { addBase } from "./add-base.ts";
export { type BaseHere, listBases } from "./list-bases.ts";
