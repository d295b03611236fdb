/**
 * Pure: what an agent does next so that its engine holds what is wanted, proven. Decided name by name: no adapter's trouble is
 * another's, and a change costs the same however many adapters there are.
 *
 *              ┌──────── not listed by the engine any more ───────┐
 *              ▼                                                  │
 *   wanted ── load ──► listed ── prove ──► proven ────────────────┤
 *              │  ▲                │                              │
 *              ▼  │ after a delay  ▼                              │
 *      retrying, later quarantined ◄── (a fault)  new incarnation ┘
 *              │
 *              ▼
 *            refused: not these bytes on this replica; until the next incarnation
 *
 *   not wanted ── grace ──► no request in flight ──► unload
 *
 * "Could not read" (undefined) never unloads and never loads anything.
 */
import type { BlobRef, Digest, Problem } from "@loraline/contracts";
import { isLoraName } from "../../lora-names.ts";
import type { VersionRank } from "../../version-rank.ts";

export interface WantedAdapter {
  tenant: string;
  adapter: string;
  version: number;
  digest: Digest;
  loraName: string;
  manifest: BlobRef;
  evidence: BlobRef;
  trace: string | null;
  /** What is done first. */
  rank: VersionRank;
}

/** What the agent remembers of one adapter; worthless once the engine's incarnation is another. */
export interface HeldAdapter {
  incarnation: string;
  state: "proven" | "refused" | "retrying" | "quarantined";
  /** Milliseconds since the epoch; a retrying or quarantined adapter rests until then. */
  retryAt: number;
}

export interface ObservedEngine {
  incarnation: string;
  /** LoRA name to the path it was loaded from, as the engine lists them. */
  listed: ReadonlyMap<string, string | null>;
}

/** A listed adapter that has to go. Times in milliseconds since the epoch. */
export interface Leaving {
  /** Since when; 0: nobody was ever sent to it. */
  since: number;
  /** The engine refused to unload it; not before then again. */
  retryAt: number;
}

export interface AgentView {
  /** undefined: the desired state has not been read. */
  wanted: ReadonlyMap<string, WantedAdapter> | undefined;
  /** Something that is wanted could not be read, so what is not in `wanted` may be wanted all the same. */
  isUnsure: boolean;
  /** undefined: the engine is away, or could not be read. */
  engine: ObservedEngine | undefined;
  held: ReadonlyMap<string, HeldAdapter>;
  /** LoRA names that something is being done about. */
  inWork: { has(loraName: string): boolean };
  /** Listed, and not wanted here any more, or hard to unload. */
  leaving: ReadonlyMap<string, Leaving>;
  /** Listed adapters whose files on disk are not any more what was loaded, and since when. */
  spoiled: ReadonlyMap<string, number>;
  /** Where this engine must have loaded an adapter from. */
  pathOf(wanted: WantedAdapter): string;
  /** Whether requests to it are in flight on this replica, by what gateways said after `since`. */
  requests(loraName: string, since: number): "none" | "some" | "unknown";
}

export type AgentAction =
  | { kind: "load" | "prove"; wanted: WantedAdapter }
  | { kind: "unload"; loraName: string; reason: string }
  /** Look again then, ms since the epoch. */
  | { kind: "wake"; at: number };

export interface DrainLimits {
  /** Gateways learn that a name is not routed here any more. */
  graceMs: number;
  /** No gateway can be asked, or one fell silent. */
  unknownMs: number;
  /** A request this long is not waited for. */
  mostMs: number;
  /** The same for files that changed on disk: the engine may read them at any moment. */
  spoiledMs: number;
  pollMs: number;
}
export const drainLimits: DrainLimits = { graceMs: 5000, unknownMs: 30_000, mostMs: 30 * 60_000, spoiledMs: 10_000, pollMs: 1000 };

/** What is to be done about one LoRA name; undefined: nothing until something changes. */
export function decideAdapter(view: AgentView, loraName: string, now: number, limits = drainLimits): AgentAction | undefined {
  const { wanted, engine, held, inWork, leaving, spoiled } = view;
  if (wanted === undefined || engine === undefined || inWork.has(loraName)) return undefined;
  const isListed = engine.listed.has(loraName);
  const adapter = wanted.get(loraName);
  const unload = (reason: string): AgentAction => {
    const retryAt = leaving.get(loraName)?.retryAt ?? 0;
    return retryAt > now ? { kind: "wake", at: retryAt } : { kind: "unload", loraName, reason };
  };

  if (adapter === undefined) {
    if (!isListed || !isLoraName(loraName)) return undefined;
    if (view.isUnsure) return { kind: "wake", at: now + limits.pollMs };
    const since = leaving.get(loraName)?.since ?? now;
    if (since + limits.graceMs > now) return { kind: "wake", at: since + limits.graceMs };
    const requests = view.requests(loraName, since);
    const patience = { none: 0, unknown: limits.unknownMs, some: limits.mostMs }[requests];
    if (since + patience > now) return { kind: "wake", at: Math.min(now + limits.pollMs, since + patience) };
    return unload(requests === "some" ? "it is not wanted any more, and a request has lasted too long" : "it is not wanted any more");
  }

  if (isListed && engine.listed.get(loraName) !== view.pathOf(adapter)) return unload("it was loaded from another path");
  const spoiledSince = spoiled.get(loraName);
  if (isListed && spoiledSince !== undefined) {
    // Gateways tell of its requests once they send no more of them here.
    if (spoiledSince + limits.spoiledMs > now && view.requests(loraName, spoiledSince) !== "none")
      return { kind: "wake", at: Math.min(now + limits.pollMs, spoiledSince + limits.spoiledMs) };
    return unload("its files changed on disk");
  }
  const known = held.get(loraName);
  const current = known?.incarnation === engine.incarnation ? known : undefined;
  if (current?.state === "refused") return isListed ? unload("it was refused") : undefined;
  if (current?.state === "proven" && isListed) return undefined;
  if ((current?.state === "retrying" || current?.state === "quarantined") && current.retryAt > now)
    return { kind: "wake", at: current.retryAt };
  return { kind: isListed ? "prove" : "load", wanted: adapter };
}

/* faults */

export type Fault =
  /** Found in the files alone. */
  | { of: "adapter"; problem: Problem }
  /** The engine, or the object store, said no: to these bytes, or to any. */
  | { of: "unknown"; problem: Problem }
  /** The disk, the network, an engine that does not answer. */
  | { of: "replica"; problem: Problem; afterMs?: number; mostMs?: number };

/** Faults in a row after which nobody waits for this replica any more. */
export const quarantineAfter = 5;

/** What a fault makes of an adapter on this replica; `attempts` counts this one. */
export function decideFault(
  fault: Fault,
  attempts: number,
): { state: "refused" | "retrying" | "quarantined"; blame: "adapter" | "replica" | null; afterMs: number } {
  if (fault.of === "adapter") return { state: "refused", blame: "adapter", afterMs: 0 };
  const blame = fault.of === "replica" ? "replica" : null;
  const mostMs = (fault.of === "replica" ? fault.mostMs : undefined) ?? 300_000;
  if (attempts >= quarantineAfter) return { state: "quarantined", blame, afterMs: pause(30_000, attempts - quarantineAfter, mostMs) };
  const asked = fault.of === "replica" ? fault.afterMs : undefined;
  // At once, where the fault says so; but not again and again.
  return { state: "retrying", blame, afterMs: asked !== undefined && attempts <= 3 ? asked : pause(500, attempts - 1, 60_000) };
}

const pause = (first: number, doubled: number, most: number): number => Math.min(most, first * 2 ** Math.max(0, doubled));
