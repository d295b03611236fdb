/**
 * Pure: what an agent does next so that its engine holds what is wanted, proven.
 *
 *              ┌──────── not listed by the engine any more ───────┐
 *              ▼                                                  │
 *   wanted ── load ──► listed ── prove ──► proven ────────────────┤
 *              │  ▲                │                              │
 *              ▼  │ after a delay  ▼                              │
 *            retrying ◄──────── (a fault)        new incarnation ─┘
 *              │
 *              ▼
 *            refused: these bytes never work here; until the next incarnation
 *
 * "Could not read" (undefined) never unloads and never loads anything.
 */
import type { BlobRef, Digest } from "@loraline/contracts";
import { isEngineName } from "./engine-names.ts";

export interface WantedAdapter {
  tenant: string;
  adapter: string;
  version: number;
  digest: Digest;
  engineName: string;
  manifest: BlobRef;
  evidence: BlobRef;
  trace: string | null;
}

/** What the agent remembers of one adapter; worthless once the engine's incarnation is another. */
export interface HeldAdapter {
  incarnation: string;
  state: "proven" | "refused" | "retrying";
  /** Milliseconds since the epoch; a retrying adapter rests until then. */
  retryAt: number;
}

export interface ObservedEngine {
  incarnation: string;
  /** Engine name to the path it was loaded from, as the engine lists them. */
  listed: ReadonlyMap<string, string | null>;
}

export interface AgentView {
  /** undefined: the desired state has not been read. */
  wanted: ReadonlyMap<string, WantedAdapter> | undefined;
  /** undefined: the engine is away, or could not be read. */
  engine: ObservedEngine | undefined;
  held: ReadonlyMap<string, HeldAdapter>;
  /** Engine names that something is being done about. */
  inWork: ReadonlySet<string>;
  /** Since when a listed adapter is not wanted any more, ms since the epoch. */
  unwantedSince: ReadonlyMap<string, number>;
  /** Listed adapters whose files on disk are not any more what was loaded. */
  spoiled: ReadonlySet<string>;
  /** Where this engine must have loaded an adapter from. */
  pathOf(wanted: WantedAdapter): string;
}

export type AgentAction =
  | { kind: "load" | "prove"; wanted: WantedAdapter }
  | { kind: "unload"; engineName: string; reason: string }
  /** Look again then, ms since the epoch. */
  | { kind: "wake"; at: number };

/** How long an adapter that nobody wants stays loaded: requests that were routed to it must have begun. */
export const unloadGraceMs = 5000;

export function decideAdapters(view: AgentView, now: number): AgentAction[] {
  const { wanted, engine, held, inWork, unwantedSince, spoiled } = view;
  if (wanted === undefined || engine === undefined) return [];
  const actions: AgentAction[] = [];

  for (const adapter of wanted.values()) {
    const { engineName } = adapter;
    if (inWork.has(engineName)) continue;
    const isListed = engine.listed.has(engineName);
    if (isListed && engine.listed.get(engineName) !== view.pathOf(adapter)) {
      actions.push({ kind: "unload", engineName, reason: "it was loaded from another path" });
      continue;
    }
    if (isListed && spoiled.has(engineName)) {
      actions.push({ kind: "unload", engineName, reason: "its files changed on disk" });
      continue;
    }
    const known = held.get(engineName);
    const current = known?.incarnation === engine.incarnation ? known : undefined;
    if (current?.state === "refused") {
      if (isListed) actions.push({ kind: "unload", engineName, reason: "it was refused" });
      continue;
    }
    if (current?.state === "proven" && isListed) continue;
    if (current?.state === "retrying" && current.retryAt > now) {
      actions.push({ kind: "wake", at: current.retryAt });
      continue;
    }
    actions.push({ kind: isListed ? "prove" : "load", wanted: adapter });
  }

  for (const engineName of engine.listed.keys()) {
    if (wanted.has(engineName) || inWork.has(engineName) || !isEngineName(engineName)) continue;
    const at = (unwantedSince.get(engineName) ?? now) + unloadGraceMs;
    actions.push(at <= now ? { kind: "unload", engineName, reason: "it is not wanted any more" } : { kind: "wake", at });
  }
  return actions;
}
