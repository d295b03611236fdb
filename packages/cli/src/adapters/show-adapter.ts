/** Adapters, their versions, canaries and history, in words for a person. */
import type { adapterView, Proof } from "@loraline/contracts";
import type { z } from "zod";
import { dim, duration, type Line, table, yellow } from "../terminal.ts";

export type AdapterView = z.output<typeof adapterView>;
type Move = AdapterView["adapter"]["history"][number];

/** Proof of a version on the replica that gave it last; undefined when no replica holds it proven. */
export function proofOf(view: AdapterView, version: number): Proof | undefined {
  const held = view.replicas.flatMap(({ adapters }) => adapters).filter((adapter) => adapter.version === version && adapter.proof !== null);
  return held.at(-1)?.proof ?? undefined;
}

/** A table of all versions, and a line for each canary under way. */
export function listAdapters(views: readonly AdapterView[], now = Date.now()): Line[] {
  const rows = views.flatMap((view) => {
    const { adapter } = view;
    return adapter.versions.map((version) => {
      const share = adapter.canary?.version === version.version ? ` ${adapter.canary.share} %` : "";
      return [
        `${adapter.tenant}/${adapter.adapter}`,
        `${version.version}${adapter.alias === version.version ? " *" : ""}${share}`,
        version.status,
        provenOn(view, version),
        version.evaluation === null ? "-" : `${version.evaluation.base_loss.toFixed(2)} → ${version.evaluation.adapter_loss.toFixed(2)}`,
        version.digest.slice(0, 19),
        version.reason?.message ?? version.note ?? (version.status === "retired" ? "loaded again when asked for" : ""),
      ];
    });
  });
  const canaries = views.flatMap((view) => (view.adapter.canary ? [canaryLine(view, now)] : []));
  const awaiting = views.flatMap(({ adapter: { tenant, adapter, awaiting: move } }) =>
    move ? [yellow(`${tenant}/${adapter}: the alias moves to version ${move.version} when it is loaded and proven again`)] : [],
  );
  const troubles = views.flatMap(troublesOf);
  const systems = views.flatMap(systemsOf);
  return [
    ...table([["ADAPTER", "VERSION", "STATUS", "PROOF", "HELD-OUT LOSS", "DIGEST", ""], ...rows]),
    ...systems,
    ...canaries,
    ...awaiting,
    ...troubles,
  ];
}

/** The system prompts with which versions were trained, and are served. */
function systemsOf({ adapter }: AdapterView): string[] {
  const of = new Map<string, number[]>();
  for (const { version, status, system } of adapter.versions) {
    if (system && (status === "desired" || status === "retired")) of.set(system, [...(of.get(system) ?? []), version]);
  }
  return [...of].map(([system, versions]) => {
    const shown = system.length > 80 ? `${system.slice(0, 80).toWellFormed()}…` : system;
    return dim(`${adapter.tenant}/${adapter.adapter}@${versions.join(",")}: served with its system prompt ${JSON.stringify(shown)}`);
  });
}

/** `proven 2/3`: replicas that have it proven, of those that should. */
function provenOn({ replicas }: AdapterView, { version, replicas: placed }: AdapterView["adapter"]["versions"][number]): string {
  const holders = replicas.filter(({ ready, replica }) => ready && (placed?.includes(replica) ?? true));
  const proven = holders.filter(({ adapters }) => adapters.some((held) => held.version === version && held.state === "proven"));
  return proven.length === 0 ? "-" : `proven ${proven.length}/${holders.length}`;
}

/** What keeps versions from being where they should be, with the reason. */
function troublesOf({ adapter, replicas }: AdapterView): string[] {
  const name = `${adapter.tenant}/${adapter.adapter}`;
  const unplaced = adapter.versions.flatMap(({ version, status, unplaced: problem }) =>
    status === "desired" && problem ? [yellow(`${name}@${version}: ${problem.message}`)] : [],
  );
  const held = replicas.flatMap(({ replica, adapters }) =>
    adapters.flatMap(({ version, state, error }) =>
      error === null ? [] : [yellow(`${name}@${version} on replica ${replica}: ${state}: ${error.message} [${error.code}]`)],
    ),
  );
  return [...unplaced, ...held];
}

/** Where a canary stands and what it waits for. */
function canaryLine({ adapter, canary: counts }: AdapterView, now: number): string {
  const { canary } = adapter;
  if (!canary) return "";
  const { steps, interval_s, min_requests } = canary.settings;
  const { requests, errors } = counts?.version ?? { requests: 0, errors: 0 };
  const leftMs = Math.max(0, Date.parse(canary.since) + interval_s * 1000 - now);
  const by = canary.by === null ? "" : `, by ${canary.by}`;
  const where = `${adapter.tenant}/${adapter.adapter}: canary of version ${canary.version} beside ${canary.from}${by}, step ${canary.step + 1} of ${steps.length} (${canary.share} %)`;
  if (canary.unprovenSince) return yellow(`${where}: paused, for no ready replica has it proven since ${time(canary.unprovenSince)}`);
  const answers = `${requests} of ${min_requests} answers, ${errors} failed`;
  return `${where}: ${leftMs > 0 ? `${duration(leftMs)} left, ` : ""}${answers}`;
}

const time = (iso: string): string => iso.replace("T", " ").slice(0, 19);

const kinds: Readonly<Record<Move["kind"], (move: Move) => string>> = {
  promoted: ({ from, to }) => (from === null ? `promoted ${to}` : `promoted ${to} (was ${from})`),
  rolledback: ({ from, to }) => `rolled back to ${to} (was ${from})`,
  "canary-started": ({ to, share }) => `canary ${to} began, ${share} %`,
  "canary-stepped": ({ to, share }) => `canary ${to} now ${share} %`,
  "canary-ended": ({ to, outcome }) => `canary ${to} ${outcome === "rolledback" ? "rolled back" : outcome}`,
  retired: ({ to }) => `retired ${to}`,
  recalled: ({ to }) => `loaded ${to} again`,
  deleted: ({ to }) => `deleted ${to}`,
  "not-moved": ({ to }) => `not promoted: ${to}`,
};

/** Moves of the alias and of canaries, oldest first: when, what, who, why. */
export function listHistory(views: readonly AdapterView[]): Line[] {
  return views.flatMap(({ adapter }): readonly Line[] => {
    const name = `${adapter.tenant}/${adapter.adapter}`;
    const { history } = adapter;
    if (history.length === 0) return [`${name}: nothing was promoted yet`];
    const rows = history.map((move) => [
      time(move.at),
      name,
      kinds[move.kind](move),
      move.by ?? dim("(itself)"),
      `${move.reason}${move.code ? ` [${move.code}]` : ""}`,
    ]);
    return table([["WHEN (UTC)", "ADAPTER", "WHAT", "BY", "WHY"], ...rows]);
  });
}
