/** In a file of its own, so that the table of codes is loaded only when a code has to be explained. */
export { explainCode } from "@loraline/contracts";
