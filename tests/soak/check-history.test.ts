import { simulatedAdapter, simulatedAnswer, simulatedWeights } from "@loraline/testkit/servers";
import { describe, expect, it } from "vitest";
import { checkHistory } from "./check-history.ts";
import type { ChatEntry, Entry, Move, Stored, StoredEvent } from "./history.ts";

const base = "tiny";
const digests = ["sha256:one", "sha256:two"];
const files = [1, 2].map((seed) => simulatedAdapter({ base, seed }));
const said = (version: number, asked: string) => {
  const { parts, usage } = simulatedAnswer(base, simulatedWeights(files[version - 1] as (typeof files)[0]), [{ content: asked }]);
  return { text: parts.join(""), usage };
};

let seq = 0;
const event = (subject: string, data: unknown = {}, time = 10): StoredEvent => ({
  seq: ++seq,
  subject: `loraline.acme.${subject}.v1`,
  time,
  data,
});
const runEvents = (run: string): StoredEvent[] => [
  event(`run.${run}.requested`),
  event(`run.${run}.tokenized`),
  event(`run.${run}.started`, { attempt: 1 }),
  event(`run.${run}.trained`),
  event(`run.${run}.served`),
];

const promoted = (n: number, to: number, command: number | null = null): Move => ({ n, kind: "promoted", to, command });
const command = { at: 100, until: 110, outcome: "ok", status: 200 } as const;
const chat = (version: number, at: number, over: Partial<ChatEntry> = {}): ChatEntry => {
  const asked = `Question at ${at}?`;
  return {
    kind: "chat",
    at,
    until: at + 5,
    process: "gateway-1#1",
    adapter: "anna",
    asked,
    outcome: "answered",
    status: 200,
    version,
    ...said(version, asked),
    ...over,
  };
};
const requested = (key: string, run: string): Entry => ({ kind: "run", key, adapter: "anna", run, ...command });
const counts = (chats: readonly ChatEntry[], version: number) => {
  const its = chats.filter((entry) => entry.version === version);
  return {
    model: `acme/anna@${version}`,
    requests: its.length,
    promptTokens: its.reduce((sum, { usage }) => sum + (usage?.prompt_tokens ?? 0), 0),
    completionTokens: its.reduce((sum, { usage }) => sum + (usage?.completion_tokens ?? 0), 0),
  };
};

/** A line on which all went well: a dataset, two runs, two versions, the alias moved once. */
function wellDone() {
  const chats = [chat(1, 200), chat(1, 210), chat(2, 300), chat(2, 1100)];
  const history: Entry[] = [
    { kind: "start", at: 0, seed: 1, tenant: "acme", base },
    { kind: "upload", name: "rows", rows: 20, sha256: "abc", file: "D1", ...command },
    requested("a", "R1"),
    requested("b", "R2"),
    {
      kind: "seen",
      process: "gateway-1#1",
      adapter: "anna",
      alias: 1,
      at: 150,
      until: 160,
      moves: [promoted(1, 1)],
      versions: [{ version: 1, digest: "sha256:one" }],
    },
    ...chats,
    { kind: "move", verb: "promote", adapter: "anna", moves: [promoted(1, 1), promoted(2, 2, 7)], ...command },
    { kind: "healed", at: 1000 },
    { kind: "content", at: 1200, until: 1210, file: "D1", sha256: "abc" },
  ];
  const stored: Stored = {
    streams: {
      DATASETS: [event("dataset.D1.received"), event("dataset.D1.ingested", { records: 20 })],
      RUNS: [...runEvents("R1"), ...runEvents("R2")],
      DLQ: [],
    },
    adapters: {
      anna: {
        alias: 2,
        moves: [promoted(1, 1), promoted(2, 2, 7)],
        versions: [1, 2].map((version) => ({ version, digest: digests[version - 1] ?? "", runId: `R${version}`, status: "desired" })),
      },
    },
    usage: { "acme.day.anna.gateway": [counts(chats, 1), counts(chats, 2)] },
    files: Object.fromEntries(
      files.map(({ config, weights }, i) => [digests[i] ?? "", { config: config.toString("base64"), weights: weights.toString("base64") }]),
    ),
  };
  return { history, stored, runs: stored.streams["RUNS"] as StoredEvent[], anna: stored.adapters["anna"] as Stored["adapters"][string] };
}

const findingsOf = ({ history, stored }: { history: readonly Entry[]; stored: Stored }) =>
  checkHistory(history, stored).map(({ what, message }) => `${what}: ${message}`);

it("finds nothing where all went well", () => {
  expect(findingsOf(wellDone())).toEqual([]);
});

describe("finds what was lost:", () => {
  it("an event of an acknowledged dataset", () => {
    const line = wellDone();
    line.stored.streams["DATASETS"]?.pop();
    expect(findingsOf(line)).toEqual(["lost: dataset D1 (rows) was acknowledged, and there is no dataset.ingested.v1"]);
  });
  it("records of a dataset", () => {
    const line = wellDone();
    Object.assign(line.stored.streams["DATASETS"]?.[1] ?? {}, { data: { records: 19 } });
    expect(findingsOf(line)).toEqual(["lost: dataset D1 (rows) has 19 records of 20"]);
  });
  it("an acknowledged run, or its end", () => {
    const line = wellDone();
    line.stored.streams["RUNS"] = line.runs.filter(({ subject }) => !subject.includes("R2") || !/served|requested/.test(subject));
    expect(findingsOf(line)).toEqual([
      "lost: run R2 was acknowledged, and there is no run.requested.v1",
      "lost: run R2 ended 0 times: never",
    ]);
  });
  it("a run that failed for no fault of its own", () => {
    const line = wellDone();
    line.runs.splice(line.runs.length - 1, 1, event("run.R2.failed", { code: "ATTEMPTS_EXHAUSTED" }));
    expect(findingsOf(line)).toEqual(['lost: run R2 ended with failed.v1: {"code":"ATTEMPTS_EXHAUSTED"}']);
  });
  it("an adapter that answers no more", () => {
    const line = wellDone();
    const history = line.history.filter(({ kind, at }) => kind !== "chat" || at < 1000);
    const left = history.filter((entry) => entry.kind === "chat");
    line.stored.usage = { "acme.day.anna.gateway": [counts(left, 1), counts(left, 2)] };
    expect(findingsOf({ ...line, history })).toEqual(["lost: anna did not answer after everything was healed"]);
  });
  it("what the line did not do by itself, and messages that failed", () => {
    const line = wellDone();
    line.history.push({ kind: "stuck", at: 1, what: "all runs are over" });
    line.stored.streams["DLQ"] = [{ seq: 1, subject: "dlq.RUNS.train.7", time: 1, data: "why" }];
    expect(findingsOf(line)).toEqual(["stuck: all runs are over", 'failed-message: dlq.RUNS.train.7: "why"']);
  });
});

describe("finds what was done twice:", () => {
  it("an event of a run, and an attempt", () => {
    const line = wellDone();
    line.runs.push(event("run.R1.trained"), event("run.R1.started", { attempt: 1 }));
    expect(findingsOf(line)).toEqual(["doubled: run R1 has run.trained.v1 2 times", "doubled: run R1 started an attempt twice: 1, 1"]);
  });
  it("a run with one idempotency key", () => {
    const line = wellDone();
    line.history.push(requested("a", "R2"));
    expect(findingsOf(line)).toContain("doubled: the idempotency key a made the runs R1 and R2");
  });
  it("a version of one run", () => {
    const line = wellDone();
    line.anna.versions.push({ version: 3, digest: "sha256:two", runId: "R2", status: "desired" });
    expect(findingsOf(line)).toEqual(["doubled: run R2 made 2 versions of anna"]);
  });
  it("a run and a dataset that nobody was told of, unless a request had no answer", () => {
    const line = wellDone();
    line.runs.push(event("run.R3.requested"));
    line.stored.streams["DATASETS"]?.push(event("dataset.D2.received"));
    expect(findingsOf(line)).toEqual([
      "doubled: 1 datasets that nobody was told of, and 0 uploads without an answer",
      "doubled: 1 runs that nobody was told of, and 0 requests without an answer",
    ]);
    line.history.push(
      { kind: "run", key: "c", adapter: "anna", ...command, outcome: "unknown" },
      { kind: "upload", name: "rows", rows: 20, sha256: "abc", ...command, outcome: "unknown" },
    );
    expect(findingsOf(line)).toEqual([]);
  });
  it("a command that moved the alias twice", () => {
    const line = wellDone();
    line.anna.moves.push(promoted(3, 2, 7));
    expect(findingsOf(line)).toEqual(["doubled: anna: command 7 moved the alias 2 times"]);
  });
});

describe("finds a wrong answer:", () => {
  it("another version's", () => {
    const line = wellDone();
    (line.history.find((entry) => entry.kind === "chat") as ChatEntry).text = said(2, "Question at 200?").text;
    expect(findingsOf(line)).toEqual([expect.stringMatching(/^wrong-answer: anna@1 by gateway-1#1 at 205 said /)]);
  });
  it("of a version that does not exist, or was not trained yet", () => {
    const line = wellDone();
    for (const { data: _, ...trained } of line.runs.filter(({ subject }) => subject.includes("R1.trained")))
      line.runs.splice(
        line.runs.findIndex(({ seq: at }) => at === trained.seq),
        1,
        { ...trained, data: {}, time: 209 },
      );
    line.history.push({ ...chat(1, 400), version: 9, process: "gateway-1#2" });
    const found = findingsOf(line);
    expect(found).toContain("wrong-answer: anna@1 by gateway-1#1 at 205: it was answered before it was trained");
    expect(found).toContain("wrong-answer: anna@9 by gateway-1#2 at 405: there is no such version");
  });
  it("a file with other bytes, and a version with another digest", () => {
    const line = wellDone();
    line.history.push({ kind: "content", at: 1300, until: 1310, file: "D1", sha256: "other" });
    line.anna.versions[0] = { version: 1, digest: "sha256:two", runId: "R1", status: "desired" };
    const found = findingsOf(line);
    expect(found).toContain("wrong-answer: the content of D1 (rows) is not what was uploaded");
    expect(found).toContain("wrong-answer: anna@1 was sha256:one, and is sha256:two now");
  });
  it("a refusal that does not say to ask again", () => {
    const line = wellDone();
    line.history.push(chat(1, 400, { outcome: "refused", status: 503, code: "model_not_ready" }));
    expect(findingsOf(line)).toEqual([]);
    line.history.push(chat(1, 500, { outcome: "refused", status: 404, code: "model_not_found" }));
    expect(findingsOf(line)).toEqual(["refused: anna by gateway-1#1 at 505: 404 model_not_found"]);
  });

  it("of what is right and is refused for good", () => {
    const line = wellDone();
    const refused = { at: 700, until: 710, outcome: "refused" } as const;
    const run = { kind: "run", adapter: "anna", run: undefined, ...refused } as const;
    line.history.push(
      { ...run, key: "k8", status: 429, code: "rate_limit_exceeded" },
      { ...run, key: "k9", status: 403, code: "QUOTA_HISTORY" },
    );
    expect(findingsOf(line)).toEqual([]);
    const upload = { kind: "upload", name: "a.jsonl", rows: 1, sha256: "x", file: undefined, ...refused } as const;
    line.history.push({ ...run, key: "k10", status: 400, code: "invalid_spec" }, { ...upload, status: 404, code: undefined });
    expect(findingsOf(line)).toEqual(["refused: upload a.jsonl at 710: 404 undefined", "refused: run k10 at 710: 400 invalid_spec"]);
  });
});

describe("finds an alias that moved back:", () => {
  it("a gateway that answers with the version before, after it had answered with the next", () => {
    const line = wellDone();
    const back = chat(1, 320);
    line.history.push(back);
    line.stored.usage = { more: [counts([back], 1)], ...line.stored.usage };
    expect(findingsOf(line)).toEqual(["moved-back: anna@1 by gateway-1#1 at 325, after a later move had been answered with"]);
  });
  it("but not answers that overlap, another gateway's, or a move back that was made", () => {
    const line = wellDone();
    const others = [chat(1, 299, { until: 400 }), chat(1, 330, { process: "gateway-2#1" })];
    line.history.push(...others);
    line.stored.usage = { more: [counts(others, 1)], ...line.stored.usage };
    expect(findingsOf(line)).toEqual([]);
    const after = chat(1, 1500);
    line.history.push(after);
    line.stored.usage = { again: [counts([after], 1)], ...line.stored.usage };
    line.anna.moves.push({ n: 3, kind: "rolledback", to: 1, command: 8 });
    line.anna.alias = 1;
    expect(findingsOf(line)).toEqual([]);
  });
  it("a move that was acknowledged, and is gone or another one", () => {
    const line = wellDone();
    line.anna.moves.pop();
    line.anna.alias = 1;
    const found = findingsOf(line);
    expect(found).toContain("moved-back: anna: move 2 (promoted to 2) was acknowledged, and is gone");
    expect(found).toContain("moved-back: anna answers with version 2, and the alias is 1");
  });
  it("a line of the history that was seen, and is gone, though not an old one that made room for newer ones", () => {
    const line = wellDone();
    const seen = line.history.find(({ kind }) => kind === "seen") as Extract<(typeof line.history)[number], { kind: "seen" }>;
    const retired = (n: number): Move => ({ n, kind: "retired", to: 1, command: null });
    line.history.push({ ...seen, moves: [...line.anna.moves, retired(3), retired(5)] });
    line.anna.moves.push(retired(4));
    expect(findingsOf(line)).toEqual(["moved-back: anna: move 5 (retired to 1) was seen, and is gone"]);
  });
});

describe("finds usage that is off:", () => {
  const usageOf = (line: ReturnType<typeof wellDone>) => (line.stored.usage["acme.day.anna.gateway"] ?? [])[0] as ReturnType<typeof counts>;
  it("a request, or a token, too few or too many", () => {
    const line = wellDone();
    usageOf(line).requests += 1;
    expect(findingsOf(line)).toEqual(["usage: acme/anna@1: 3 requests, and there were 2"]);
    usageOf(line).requests -= 2;
    expect(findingsOf(line)).toEqual(["usage: acme/anna@1: 1 requests, and there were 2"]);
    usageOf(line).requests += 1;
    usageOf(line).completionTokens -= 1;
    expect(findingsOf(line)).toEqual(["usage: acme/anna@1: 15 completion tokens and not 16"]);
  });
  it("but not what a killed gateway had not written, nor an answer that broke off", () => {
    const line = wellDone();
    usageOf(line).requests = 0;
    line.history.push({ kind: "ended", at: 900, process: "gateway-1#1", how: "crashed" });
    expect(findingsOf(line)).toEqual([]);
    const other = wellDone();
    other.history.push(chat(1, 500, { outcome: "broken", status: 0, text: undefined, version: undefined }));
    usageOf(other).requests += 1;
    usageOf(other).promptTokens += 5;
    expect(findingsOf(other)).toEqual([]);
  });
  it("counts that fell", () => {
    const line = wellDone();
    line.history.push({ kind: "ended", at: 900, process: "gateway-1#1", how: "crashed" });
    line.history.push({ kind: "usage", at: 700, key: "acme.day.anna.gateway", rows: [counts([], 1), { ...usageOf(line), requests: 5 }] });
    expect(findingsOf(line)).toEqual(["usage: acme/anna@1 in acme.day.anna.gateway: 5 requests at 700, and 2 at the end"]);
  });
});
