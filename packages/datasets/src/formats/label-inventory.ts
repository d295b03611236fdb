/** Collects the classes of a file. A classification's prompt lists them, so they are collected before its first row is converted. */
import type { Detector } from "./detect.ts";
import { mostLabels } from "./prompt-templates.ts";
import type { RawRow } from "../containers/raw-rows.ts";

/**
 * Reads a whole file once. Memory is needed for the classes only; the time is that of parsing.
 * @returns the classes, sorted; null when there are more than {@link mostLabels}.
 */
export async function countLabels(
  batches: AsyncIterable<readonly RawRow[]>,
  { labelOf }: Pick<Detector, "labelOf">,
): Promise<readonly string[] | null> {
  const labels = new Set<string>();
  for await (const rows of batches) {
    for (const row of rows) {
      const label = "refusal" in row ? undefined : labelOf("text" in row ? parsed(row.text) : row.value);
      if (label === undefined || label === "") continue;
      labels.add(label);
      if (labels.size > mostLabels) return null;
    }
  }
  return [...labels].sort();
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
