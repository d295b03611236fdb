/** The whole line, three times on a warm engine: what a run costs besides loading the base, training and evaluating. */
import type { Row } from "./table.ts";
export async function benchLine(): Promise<Row[]> {
  return [];
}
