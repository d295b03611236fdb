/** Ids that follow from a resource alone, so that asking for its run twice asks for one run. */
import { createHash } from "node:crypto";
import type { KubernetesObject } from "@kubernetes/client-node";
import { encodeTime } from "ulid";

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** ULID with the time at which the resource was made, and the rest from its UID, which no other resource ever has. */
function idOf({ metadata }: KubernetesObject, what: "run" | "dataset" | "validation"): string {
  const hash = createHash("sha256").update(`${metadata?.uid}\n${what}`).digest();
  const made = metadata?.creationTimestamp;
  const rest = Array.from({ length: 16 }, (_, i) => crockford.charAt((hash[i] ?? 0) % 32)).join("");
  return encodeTime(made === undefined ? 0 : new Date(made).getTime(), 10) + rest;
}

export const idsOf = (object: KubernetesObject) => ({
  run: idOf(object, "run"),
  dataset: idOf(object, "dataset"),
  validation: idOf(object, "validation"),
});
export type Ids = ReturnType<typeof idsOf>;

/** Ends the name of an Event, so that the same milestone is told once. */
export const shortHash = (...parts: readonly string[]): string => createHash("sha256").update(parts.join("\n")).digest("hex").slice(0, 16);
