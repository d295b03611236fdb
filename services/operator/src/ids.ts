/** Ids that are derived only from a resource, so that requesting its run twice is the same request. */
import { createHash } from "node:crypto";
import type { KubernetesObject } from "@kubernetes/client-node";
import { encodeTime } from "ulid";

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** A ULID made from the resource's creation time and its UID, which is unique for ever. */
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

/** The end of an Event's name. It is derived from the milestone, so that each milestone is reported once. */
export const shortHash = (...parts: readonly string[]): string => createHash("sha256").update(parts.join("\n")).digest("hex").slice(0, 16);
