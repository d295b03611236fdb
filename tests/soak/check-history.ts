/**
 * The checker of a soak. Pure: it knows only the history and what NATS held at the end, and none of Loraline's code but the simulated
 * engine's formula. It asks nothing about time, except that nothing is answered before it existed.
 */
import { simulatedAnswer, simulatedWeights } from "@loraline/testkit/servers";
import type { ChatEntry, Entry, Finding, Move, Stored, StoredEvent, UsageCount } from "./history.ts";

type Of<Kind extends Entry["kind"]> = Extract<Entry, { kind: Kind }>;
type Report = (what: Finding["what"], message: string) => void;

export function checkHistory(history: readonly Entry[], stored: Stored): Finding[] {
  const findings: Finding[] = [];
  const report: Report = (what, message) => void findings.push({ what, message });
  const of = <Kind extends Entry["kind"]>(kind: Kind) => history.filter((entry): entry is Of<Kind> => entry.kind === kind);
  const start = of("start")[0];
  if (start === undefined) return [{ what: "lost", message: "the history has no beginning" }];

  for (const { what } of of("stuck")) report("stuck", what);
  checkFailedMessages(of("move"), stored, report);
  checkRefusals([...of("upload"), ...of("run")], report);
  checkUploads(of("upload"), of("content"), stored, report);
  checkRuns(of("run"), stored, report);
  checkMoves(of("move"), of("seen"), stored, report);
  const chats = of("chat");
  const moves = movesOf(history, stored);
  checkAnswers(chats, { start, stored, healedAt: of("healed").at(-1)?.at }, report);
  checkOrder(chats, moves, report);
  const crashed = new Set(of("ended").flatMap(({ process, how }) => (how === "crashed" ? [process] : [])));
  checkUsage(chats, of("usage"), { tenant: start.tenant, stored, crashed }, report);
  return findings;
}

/** What clients upload and train is right, so it is refused only for a while, or because it is too much. A move may come too late. */
function checkRefusals(asked: readonly (Of<"upload"> | Of<"run">)[], report: Report): void {
  for (const entry of asked) {
    const { outcome, status, code } = entry;
    if (outcome !== "refused" || mayRefuse.has(status) || code?.startsWith("QUOTA_")) continue;
    report("refused", `${entry.kind === "run" ? `run ${entry.key}` : `upload ${entry.name}`} at ${entry.until}: ${status} ${code}`);
  }
}

/** A command of a user that cannot be done is a failed message too; there are no others. */
function checkFailedMessages(moves: readonly Of<"move">[], stored: Stored, report: Report): void {
  const letters = stored.streams["DLQ"] ?? [];
  const commands = letters.filter(({ subject }) => subject.startsWith("dlq.ADAPTERS.serve-adapter-commands."));
  for (const letter of letters) {
    if (!commands.includes(letter)) report("failed-message", `${letter.subject}: ${JSON.stringify(letter.data)}`);
  }
  const refused = moves.filter(({ outcome }) => outcome !== "ok").length;
  if (commands.length > refused)
    report("failed-message", `${commands.length} commands failed for good, and ${refused} were not acknowledged`);
}

/** Events by the id in their subject `loraline.<tenant>.<noun>.<id>.<verb>.v1`, and then by the verb. */
function byId(events: readonly StoredEvent[] = []): Map<string, Record<string, StoredEvent[]>> {
  const found = new Map<string, Record<string, StoredEvent[]>>();
  for (const event of events) {
    const [, , , id = "", ...verb] = event.subject.split(".");
    const its = found.get(id) ?? {};
    found.set(id, its);
    (its[verb.join(".")] ??= []).push(event);
  }
  return found;
}

function checkUploads(uploads: readonly Of<"upload">[], contents: readonly Of<"content">[], stored: Stored, report: Report): void {
  const datasets = byId(stored.streams["DATASETS"]);
  const read = new Map(contents.map(({ file, sha256 }) => [file, sha256]));
  const known = new Set<string>();
  for (const { name, file, outcome, rows, sha256 } of uploads) {
    if (outcome !== "ok" || file === undefined) continue;
    known.add(file);
    const its = datasets.get(file) ?? {};
    for (const verb of ["received.v1", "ingested.v1"]) {
      const times = its[verb]?.length ?? 0;
      if (times === 0) report("lost", `dataset ${file} (${name}) was acknowledged, and there is no dataset.${verb}`);
      if (times > 1) report("doubled", `dataset ${file} (${name}) has dataset.${verb} ${times} times`);
    }
    if (its["rejected.v1"] !== undefined) report("lost", `dataset ${file} (${name}) was acknowledged and then rejected`);
    const records = (its["ingested.v1"]?.[0]?.data as { records?: number } | undefined)?.records;
    if (records !== undefined && records !== rows) report("lost", `dataset ${file} (${name}) has ${records} records of ${rows}`);
    const now = read.get(file);
    if (now !== undefined && now !== sha256) report("wrong-answer", `the content of ${file} (${name}) is not what was uploaded`);
  }
  const unknown = uploads.filter(({ outcome }) => outcome === "unknown").length;
  const others = [...datasets.keys()].filter((id) => !known.has(id)).length;
  if (others > unknown) report("doubled", `${others} datasets that nobody was told of, and ${unknown} uploads without an answer`);
}

const ends = ["served.v1", "failed.v1", "rejected.v1", "cancelled.v1"];

function checkRuns(asked: readonly Of<"run">[], stored: Stored, report: Report): void {
  const runs = byId(stored.streams["RUNS"]);
  const keys = new Map<string, string>();
  for (const { key, run, outcome, adapter } of asked) {
    if (outcome !== "ok" || run === undefined) continue;
    const before = keys.get(key);
    if (before !== undefined && before !== run) report("doubled", `the idempotency key ${key} made the runs ${before} and ${run}`);
    keys.set(key, run);
    const its = runs.get(run) ?? {};
    const count = (verb: string): number => its[verb]?.length ?? 0;
    for (const verb of ["requested.v1", "tokenized.v1", "trained.v1"]) {
      if (count(verb) === 0) report("lost", `run ${run} was acknowledged, and there is no run.${verb}`);
      if (count(verb) > 1) report("doubled", `run ${run} has run.${verb} ${count(verb)} times`);
    }
    const over = ends.flatMap((verb) => Array.from({ length: count(verb) }, () => verb));
    if (over.length !== 1)
      report(over.length === 0 ? "lost" : "doubled", `run ${run} ended ${over.length} times: ${over.join(", ") || "never"}`);
    else if (over[0] !== "served.v1") {
      report("lost", `run ${run} ended with ${over[0]}: ${JSON.stringify(its[over[0] ?? ""]?.[0]?.data)}`);
    }
    const attempts = (its["started.v1"] ?? []).map(({ data }) => (data as { attempt: number }).attempt);
    if (new Set(attempts).size !== attempts.length) report("doubled", `run ${run} started an attempt twice: ${attempts.join(", ")}`);
    const versions = stored.adapters[adapter]?.versions.filter(({ runId }) => runId === run) ?? [];
    if (versions.length !== 1) {
      report(versions.length === 0 ? "lost" : "doubled", `run ${run} made ${versions.length} versions of ${adapter}`);
    }
  }
  const known = new Set(keys.values());
  const unanswered = new Set(asked.flatMap(({ key, outcome }) => (outcome === "unknown" && !keys.has(key) ? [key] : []))).size;
  const others = [...runs].filter(([id, its]) => !known.has(id) && its["requested.v1"] !== undefined).length;
  if (others > unanswered) report("doubled", `${others} runs that nobody was told of, and ${unanswered} requests without an answer`);
}

/** Lines of an adapter's history that are no moves. */
const besideMoves: ReadonlySet<string> = new Set(["retired", "recalled", "deleted", "not-moved"]);
const isAliasMove = ({ kind }: Move): boolean => kind === "promoted" || kind === "rolledback";
const sameMove = (a: Move, b: Move): boolean => a.kind === b.kind && a.to === b.to;
const nameOf = ({ n, kind, to }: Move): string => `move ${n} (${kind} to ${to})`;

/** What was once said of an adapter stays: its moves in their order, and what each version is. */
function checkMoves(commands: readonly Of<"move">[], seen: readonly Of<"seen">[], stored: Stored, report: Report): void {
  for (const [adapter, { alias, moves, versions }] of Object.entries(stored.adapters)) {
    const byNumber = new Map(moves.map((move) => [move.n, move]));
    // An entry keeps 300 lines. Those that are no moves go first, so each sort has an oldest one that is kept.
    const least = (areBeside: boolean): number =>
      Math.min(...moves.filter(({ kind }) => besideMoves.has(kind) === areBeside).map(({ n }) => n));
    const oldest = { moves: least(false), besideMoves: least(true) };
    const last = moves.findLast(isAliasMove);
    if (last !== undefined && last.to !== alias) report("moved-back", `${adapter}: the alias is ${alias}, and its last is ${nameOf(last)}`);
    const told = new Map<number, string>(versions.map(({ version, digest }) => [version, digest]));
    const check = (given: readonly Move[], who: string): void => {
      for (const move of given) {
        const now = byNumber.get(move.n);
        const kept = besideMoves.has(move.kind) ? oldest.besideMoves : oldest.moves;
        if (now === undefined && move.n >= kept) report("moved-back", `${adapter}: ${nameOf(move)} was ${who}, and is gone`);
        else if (now !== undefined && !sameMove(now, move)) {
          report("moved-back", `${adapter}: ${nameOf(move)} was ${who}, and is ${nameOf(now)} now`);
        }
      }
    };
    for (const view of seen) {
      if (view.adapter !== adapter) continue;
      check(view.moves, "seen");
      for (const { version, digest } of view.versions) {
        const known = told.get(version);
        if (known !== undefined && known !== digest) report("wrong-answer", `${adapter}@${version} was ${digest}, and is ${known} now`);
      }
    }
    for (const command of commands) if (command.adapter === adapter && command.outcome === "ok") check(command.moves, "acknowledged");
    const numbers = versions.map(({ version }) => version);
    if (new Set(numbers).size !== numbers.length) report("doubled", `${adapter} has a version twice: ${numbers.join(", ")}`);
    const ofCommands = moves.filter((move) => isAliasMove(move) && move.command !== null);
    for (const [command, its] of Map.groupBy(ofCommands, (move) => move.command)) {
      if (its.length > 1) report("doubled", `${adapter}: command ${command} moved the alias ${its.length} times`);
    }
  }
  for (const [adapter, views] of Map.groupBy(seen, (view) => view.adapter)) {
    if (stored.adapters[adapter] === undefined) report("lost", `adapter ${adapter} was seen ${views.length} times, and is gone`);
  }
}

/** Refusals that a client may meet while something is down; each says so, and that it is to ask again. */
const mayRefuse = new Set([429, 502, 503, 504]);

function checkAnswers(
  chats: readonly ChatEntry[],
  { start, stored, healedAt }: { start: Of<"start">; stored: Stored; healedAt: number | undefined },
  report: Report,
): void {
  const runs = byId(stored.streams["RUNS"]);
  const weights = new Map(
    Object.entries(stored.files).map(([digest, { config, weights: bytes }]) => [
      digest,
      simulatedWeights({ config: Buffer.from(config, "base64"), weights: Buffer.from(bytes, "base64") }),
    ]),
  );
  for (const { adapter, version, asked, outcome, status, code, text, usage, until, process } of chats) {
    const where = `${adapter}@${version} by ${process} at ${until}`;
    if (outcome === "refused") {
      if (!mayRefuse.has(status) || code === undefined) report("refused", `${adapter} by ${process} at ${until}: ${status} ${code}`);
      continue;
    }
    if (outcome === "broken") continue;
    const known = stored.adapters[adapter]?.versions.find((candidate) => candidate.version === version);
    const its = known && weights.get(known.digest);
    if (known === undefined || its === undefined) {
      report("wrong-answer", `${where}: there is no such version`);
      continue;
    }
    const expected = simulatedAnswer(start.base, its, [{ content: asked }]);
    if (text !== expected.parts.join("")) report("wrong-answer", `${where} said "${text}" and not "${expected.parts.join("")}"`);
    if (usage !== undefined && usage.completion_tokens !== expected.usage.completion_tokens) {
      report("wrong-answer", `${where}: ${usage.completion_tokens} tokens and not ${expected.usage.completion_tokens}`);
    }
    const trained = runs.get(known.runId)?.["trained.v1"]?.[0]?.time;
    if (trained === undefined || trained > until) report("wrong-answer", `${where}: it was answered before it was trained`);
  }
  if (healedAt === undefined) return;
  // The last answer of each adapter through each process that lived to the end.
  const final = chats.filter(({ at, outcome }) => at >= healedAt && outcome === "answered");
  for (const [adapter, { alias }] of Object.entries(stored.adapters)) {
    if (alias === null) continue;
    const last = final.findLast((chat) => chat.adapter === adapter);
    if (last === undefined) report("lost", `${adapter} did not answer after everything was healed`);
    else if (last.version !== alias) report("moved-back", `${adapter} answers with version ${last.version}, and the alias is ${alias}`);
  }
}

/**
 * A gateway follows the moves of an alias in their order. Each answer gets the earliest place in the list of moves that it can have,
 * behind all answers that had ended before it began; a version that has no such place was moved away from already.
 */
function checkOrder(chats: readonly ChatEntry[], moves: ReadonlyMap<string, readonly Move[]>, report: Report): void {
  const answered = chats.filter(({ outcome, version }) => outcome === "answered" && version !== undefined);
  for (const its of Map.groupBy(answered, ({ process, adapter }) => `${process} ${adapter}`).values()) {
    const adapter = its[0]?.adapter ?? "";
    const allowed = allowedAfterEachMove(moves.get(adapter) ?? []);
    let ended: { until: number; place: number }[] = [];
    /** The latest place of all answers that have ended. */
    let least = 0;
    for (const chat of its.toSorted((a, b) => a.at - b.at)) {
      const before = ended.filter(({ until }) => until <= chat.at);
      ended = ended.filter(({ until }) => until > chat.at);
      for (const { place } of before) least = Math.max(least, place);
      const place = allowed.findIndex((versions, index) => index >= least && versions.has(chat.version));
      if (place === -1) {
        report("moved-back", `${adapter}@${chat.version} by ${chat.process} at ${chat.until}, after a later move had been answered with`);
        continue;
      }
      ended.push({ until: chat.until, place });
    }
  }
}

/** All moves of each adapter in their order. An entry in NATS keeps only the newest; the others were seen before. */
function movesOf(history: readonly Entry[], stored: Stored): Map<string, Move[]> {
  const found = new Map<string, Map<number, Move>>();
  const add = (adapter: string, moves: readonly Move[]): void => {
    const its = found.get(adapter) ?? new Map<number, Move>();
    found.set(adapter, its);
    for (const move of moves) its.set(move.n, move);
  };
  for (const entry of history) if (entry.kind === "seen" || entry.kind === "move") add(entry.adapter, entry.moves);
  for (const [adapter, { moves }] of Object.entries(stored.adapters)) add(adapter, moves);
  return new Map([...found].map(([adapter, moves]) => [adapter, [...moves.values()].toSorted((a, b) => a.n - b.n)]));
}

/** The versions that the alias may be answered with: the promoted one, and its canary's. */
function allowedAfterEachMove(moves: readonly Move[]): Set<number | null | undefined>[] {
  let alias: number | null = null;
  let canary: number | null = null;
  return moves.flatMap((move) => {
    if (isAliasMove(move)) [alias, canary] = [move.to, canary === move.to ? null : canary];
    else if (move.kind === "canary-started" || move.kind === "canary-stepped") canary = move.to;
    else if (move.kind === "canary-ended") canary = null;
    else return [];
    return [new Set([alias, canary])];
  });
}

/**
 * Usage is exact but for what a killed gateway had not yet written. So the counts of each version lie between its answers through
 * gateways that were not killed, and all that can have been counted.
 */
function checkUsage(
  chats: readonly ChatEntry[],
  observed: readonly Of<"usage">[],
  { tenant, stored, crashed }: { tenant: string; stored: Stored; crashed: ReadonlySet<string> },
  report: Report,
): void {
  const sums = new Map<string, UsageCount>();
  for (const row of Object.values(stored.usage).flat()) {
    const sum = sums.get(row.model) ?? { model: row.model, requests: 0, promptTokens: 0, completionTokens: 0 };
    sum.requests += row.requests;
    sum.promptTokens += row.promptTokens;
    sum.completionTokens += row.completionTokens;
    sums.set(row.model, sum);
  }
  for (const { key, rows, at } of observed) {
    for (const row of rows) {
      const now = stored.usage[key]?.find(({ model }) => model === row.model);
      if ((now?.requests ?? 0) < row.requests) {
        report("usage", `${row.model} in ${key}: ${row.requests} requests at ${at}, and ${now?.requests ?? 0} at the end`);
      }
    }
  }
  const answered = chats.filter(({ outcome }) => outcome === "answered");
  const models = new Set([...sums.keys(), ...answered.map(({ adapter, version }) => `${tenant}/${adapter}@${version}`)]);
  for (const model of models) {
    const [adapter = "", version] = model.slice(tenant.length + 1).split("@");
    const its = answered.filter((chat) => chat.adapter === adapter && String(chat.version) === version);
    const sure = its.filter(({ process }) => !crashed.has(process));
    const unsure = its.length - sure.length + chats.filter((chat) => chat.adapter === adapter && mayBeCounted(chat)).length;
    const { requests = 0, promptTokens = 0, completionTokens = 0 } = sums.get(model) ?? {};
    const range = `${sure.length}${unsure === 0 ? "" : ` to ${sure.length + unsure}`}`;
    if (requests < sure.length || requests > sure.length + unsure)
      report("usage", `${model}: ${requests} requests, and there were ${range}`);
    const tokens = (count: "prompt_tokens" | "completion_tokens") => sure.reduce((sum, { usage }) => sum + (usage?.[count] ?? 0), 0);
    const [prompt, completion] = [tokens("prompt_tokens"), tokens("completion_tokens")];
    const isExact = unsure === 0;
    if (isExact ? promptTokens !== prompt : promptTokens < prompt)
      report("usage", `${model}: ${promptTokens} prompt tokens and not ${prompt}`);
    if (isExact ? completionTokens !== completion : completionTokens < completion) {
      report("usage", `${model}: ${completionTokens} completion tokens and not ${completion}`);
    }
  }
}

/** A request that the client did not see answered, and that an engine may have worked on. */
const mayBeCounted = ({ outcome, status }: ChatEntry): boolean => outcome === "broken" || (outcome === "refused" && status >= 500);
