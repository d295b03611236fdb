/**
 * Promotion as users meet it: two gateways under load, a controller, agents, a real NATS; only the engines are simulated. Every
 * answer has to come from a version that was valid when its request began.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type AdapterState, adapterUnloaded, type BaseRef, moveKinds, runServed, type RunSpecInput } from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, type SimulatedEngine, simulatedProbes, test as it } from "@loraline/testkit";
import { expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "../services/gateway/src/gateway-under-test.ts";
import { type ServeUnderTest, serveUnderTest } from "../services/serve/src/serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };
/** Time within which every gateway follows a move of the alias. */
const followWithinMs = 1000;

/** The engine's chat endpoint. It knows the loaded adapters of the simulated engine, and fails or delays on request. */
async function startChats(loaded: () => ReadonlyMap<string, string>) {
  const behaviour = { failing: (_model: string): boolean => false, delayMs: 5 };
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      const { model } = JSON.parse(Buffer.concat(parts).toString()) as { model: string };
      const answer = (status: number, body: unknown): void => {
        response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
      };
      setTimeout(() => {
        if (!loaded().has(model)) return answer(404, { error: { message: `no ${model}`, type: "NotFoundError", code: 404 } });
        if (behaviour.failing(model)) return answer(500, { error: { message: "broken", type: "InternalServerError", code: 500 } });
        const message = { role: "assistant", content: "Arr" };
        return answer(200, {
          id: "1",
          object: "chat.completion",
          created: 1,
          model,
          choices: [{ index: 0, message, finish_reason: "stop" }],
        });
      }, behaviour.delayMs);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    behaviour,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

interface Answer {
  user: string;
  gateway: number;
  beganAt: number;
  status: number;
  /** 0: none. */
  version: number;
}

interface Line {
  serve: ServeUnderTest;
  engine: SimulatedEngine;
  gateways: GatewayUnderTest[];
  chats: Awaited<ReturnType<typeof startChats>>;
  answers: Answer[];
  /** Sends requests through both gateways, user after user, until the test ends. */
  load(users: number): void;
  ask(gateway: number, user: string, model?: string): Promise<Answer>;
  command(verb: string, body: object): Promise<{ adapter: AdapterState }>;
  version(seed: number, spec?: Partial<RunSpecInput>): Promise<void>;
  state(): Promise<AdapterState | undefined>;
}

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<Line> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-promotion-"));
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const engine = owned.use(await createSimulatedEngine({ base: base.name }));
  const chats = owned.use(await startChats(() => engine.loaded));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base }));
  owned.use(await serve.startController());
  owned.use(await serve.startAgent(engine.url, { publicUrl: chats.url }));
  const gateways = [
    owned.use(await startGateway({ nc, tenant, projector: false })),
    owned.use(await startGateway({ nc, tenant, projector: false })),
  ];
  const answers: Answer[] = [];
  const running: Promise<void>[] = [];
  let over = false;
  owned.defer(async () => {
    over = true;
    await Promise.all(running);
  });
  const ask = async (gateway: number, user: string, model = `${tenant}/pirate`): Promise<Answer> => {
    const beganAt = Date.now();
    const response = await gateways[gateway]?.fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model, user, messages: [{ role: "user", content: "Who are you?" }] }),
    });
    const body = (await response?.json()) as { model?: string };
    // The header names the same version that the engine was asked for.
    const version = Number(response?.headers.get("x-loraline-version") ?? 0);
    if (response?.status === 200) expect(body.model).toBe(`${tenant}/pirate@${version}`);
    return { user, gateway, beganAt, status: response?.status ?? 0, version };
  };
  return {
    serve,
    engine,
    gateways,
    chats,
    answers,
    ask,
    load(users) {
      for (let client = 0; client < 8; client++) {
        running.push(
          (async () => {
            for (let i = client; !over; i += 8) {
              answers.push(await ask(i % 2, `user-${i % users}`));
              await sleep(2);
            }
          })(),
        );
      }
    },
    async command(verb, body) {
      const response = await gateways[0]?.fetch(`/v1/loraline/adapters/pirate/${verb}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      const json = (await response?.json()) as { adapter: AdapterState };
      expect(response?.status, JSON.stringify(json)).toBe(200);
      return json;
    },
    async version(seed, spec = {}) {
      const probes = await simulatedProbes(join(dir, "scratch"), { base: base.name, seed });
      const runId = await serve.train("pirate", { ...simulatedAdapter({ base: base.name, seed }), probes }, { spec });
      await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
    },
    state: () => serve.adapter("pirate"),
  };
});

const isMove = (kind: string): boolean => (moveKinds as readonly string[]).includes(kind);

/** @returns versions that may answer a request of this time: those that were promoted or in a canary at some moment of the second before. */
function validAt(state: AdapterState, time: number): Set<number> {
  const valid = new Set<number>();
  let alias: number | null = null;
  let canary: number | null = null;
  const periods: { from: number; versions: (number | null)[] }[] = [];
  for (const { at, kind, to } of state.history) {
    if (!isMove(kind)) continue;
    if (kind === "promoted" || kind === "rolledback") alias = to;
    else canary = kind === "canary-ended" ? null : to;
    periods.push({ from: Date.parse(at), versions: [alias, canary] });
  }
  periods.forEach(({ from, versions }, index) => {
    const end = periods[index + 1]?.from ?? Number.POSITIVE_INFINITY;
    if (from <= time + 50 && end >= time - followWithinMs) for (const version of versions) if (version !== null) valid.add(version);
  });
  return valid;
}

test(
  "moves of the alias under load: every answer is of a version that was valid when its request began",
  { timeout: 60_000 },
  async ({ line }) => {
    await line.version(1);
    await line.version(2, { promote: "manual" });
    await line.version(3, { promote: "manual" });
    await expect.poll(async () => (await line.ask(1, "x")).version, until).toBe(1);
    line.load(40);
    const moves: [string, object, number][] = [
      ["promote", { version: 2 }, 2],
      ["rollback", {}, 1],
      ["promote", { version: 3 }, 3],
      ["rollback", { version: 1 }, 1],
    ];
    for (const [verb, body, version] of moves) {
      const { adapter } = await line.command(verb, body);
      expect(adapter.alias).toBe(version);
      const movedAt = Date.parse(adapter.history.at(-1)?.at ?? "");
      await expect
        .poll(() => [0, 1].map((gateway) => line.answers.findLast((answer) => answer.gateway === gateway)?.version), until)
        .toEqual([version, version]);
      // After a second no request gets another version.
      const answersSince = () => line.answers.filter(({ beganAt }) => beganAt > movedAt + followWithinMs);
      await expect.poll(() => answersSince().length, until).toBeGreaterThan(10);
      const since = answersSince();
      expect(since.filter((answer) => answer.version !== version)).toEqual([]);
    }
    const state = await line.state();
    expect(line.answers.length).toBeGreaterThan(200);
    expect(line.answers.filter(({ status }) => status !== 200)).toEqual([]);
    expect(line.answers.filter(({ version, beganAt }) => !validAt(state as AdapterState, beganAt).has(version))).toEqual([]);
    // Both gateways have used every version.
    for (const gateway of [0, 1])
      expect(new Set(line.answers.filter((answer) => answer.gateway === gateway).map(({ version }) => version))).toEqual(
        new Set([1, 2, 3]),
      );
  },
);

test("a canary under load: its share of users, then all of them, or none when it fails", { timeout: 60_000 }, async ({ line }) => {
  await line.version(1);
  await line.version(2, { promote: "manual" });
  await line.version(3, { promote: "manual" });
  await expect.poll(async () => (await line.ask(1, "x")).version, until).toBe(1);
  line.load(200);
  const canary = { steps: [20, 60], interval_s: 2, min_requests: 20, max_error_rate: 0.1, max_latency_ratio: 1000 };
  const share = (answers: Answer[], version: number): number =>
    answers.filter((answer) => answer.version === version).length / answers.length;
  const during = (step: AdapterState["history"][number] | undefined, end: string | undefined) => {
    // A request that began just before the next step may be routed just after it.
    const [from, to] = [Date.parse(step?.at ?? "") + followWithinMs, Date.parse(end ?? "") - 50];
    return line.answers.filter(({ beganAt }) => beganAt > from && beganAt < to);
  };

  await line.command("promote", { version: 2, canary });
  await expect.poll(line.state, until).toMatchObject({ alias: 2, canary: null });
  const { history = [] } = (await line.state()) ?? {};
  expect(history.map(({ kind }) => kind)).toEqual(["promoted", "canary-started", "canary-stepped", "canary-ended", "promoted"]);
  const steps = [during(history[1], history[2]?.at), during(history[2], history[3]?.at)];
  steps.forEach((answers, i) => expect(Math.abs(share(answers, 2) - (canary.steps[i] ?? 0) / 100), `step ${i + 1}`).toBeLessThan(0.12));
  // A user sees the same version on both gateways, and is never moved back.
  for (const answers of steps) {
    for (const its of Map.groupBy(answers, ({ user }) => user).values()) expect(new Set(its.map(({ version }) => version)).size).toBe(1);
  }
  const [first = [], second = []] = steps.map((answers) => new Set(answers.filter(({ version }) => version === 2).map(({ user }) => user)));
  const seen = new Set(steps[1]?.map(({ user }) => user));
  expect([...first].filter((user) => seen.has(user) && !new Set(second).has(user))).toEqual([]);
  expect(line.answers.filter(({ status }) => status !== 200)).toEqual([]);

  // The next version fails for half of its users' requests.
  let n = 0;
  line.chats.behaviour.failing = (model) => model.includes(".v3.") && n++ % 2 === 0;
  const begun = line.answers.length;
  await line.command("promote", { version: 3, canary });
  await expect.poll(line.state, until).toMatchObject({ alias: 2, canary: null });
  const ended = (await line.state())?.history.at(-1);
  expect(ended).toMatchObject({ kind: "canary-ended", outcome: "rolledback", code: "CANARY_ERRORS" });
  const after = Date.parse(ended?.at ?? "") + followWithinMs;
  await expect.poll(() => line.answers.filter(({ beganAt }) => beganAt > after).length, until).toBeGreaterThan(50);
  expect(line.answers.filter(({ beganAt, version, status }) => beganAt > after && (version !== 2 || status !== 200))).toEqual([]);
  // Only the canary's users noticed it.
  expect(line.answers.slice(begun).filter(({ version, status }) => version === 2 && status !== 200)).toEqual([]);
  const state = await line.state();
  expect(line.answers.filter(({ version, beganAt }) => version !== 0 && !validAt(state as AdapterState, beganAt).has(version))).toEqual([]);
});

test("what a command is refused for is the answer", async ({ line }) => {
  await line.version(1);
  const response = await line.gateways[0]?.fetch("/v1/loraline/adapters/pirate/rollback", { method: "POST" });
  expect([response?.status, await response?.json()]).toMatchObject([
    409,
    { error: { code: "NO_EARLIER_VERSION", message: expect.stringContaining("no served version before version 1") } },
  ]);
});

/** Status, code, Retry-After and message of an answer that is an error. */
async function refusal(response: Response) {
  const { error } = (await response.json()) as { error?: { code: string; message: string } };
  return { status: response.status, code: error?.code, message: error?.message ?? "", retryAfter: response.headers.get("retry-after") };
}
const post = (body: object): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

test(
  "five versions under one name: each can be asked, promoted or deleted, also those that were retired",
  { timeout: 90_000 },
  async ({ line, tenant }) => {
    const [first, second] = line.gateways as [GatewayUnderTest, GatewayUnderTest];
    for (let seed = 1; seed <= 5; seed++) await line.version(seed);
    const versionOf = async (number: number) => (await line.state())?.versions.find(({ version }) => version === number);
    await expect
      .poll(async () => (await line.state())?.versions.map(({ status }) => status), until)
      .toEqual(["retired", "retired", "desired", "desired", "desired"]);
    await expect.poll(() => line.engine.loaded.size, until).toBe(3);
    const name = `${tenant}/pirate@1`;
    const chat = (gateway: GatewayUnderTest, model: string) =>
      gateway.fetch("/v1/chat/completions", post({ model, messages: [{ role: "user", content: "Who are you?" }] }));

    // Asked by name: first 503 with the time to ask again, then the version's own answer.
    line.engine.behaviour.probeDelayMs = 1000;
    const asked = await Promise.all(Array.from({ length: 20 }, (_, i) => chat(i % 2 === 0 ? first : second, name)));
    for (const response of asked) {
      expect(await refusal(response)).toMatchObject({
        status: 503,
        code: "version_loading",
        retryAfter: "2",
        message: expect.stringContaining("being loaded again"),
      });
    }
    await expect.poll(async () => (await chat(second, name)).headers.get("x-loraline-version"), until).toBe("1");
    const one = await versionOf(1);
    expect(line.engine.loaded.get(one?.engineName ?? "")).toContain(one?.digest.slice("sha256:".length));
    expect((await line.state())?.history.filter(({ kind }) => kind === "recalled")).toHaveLength(1);
    // The name in OpenAI's form works too.
    expect((await chat(first, `ft:${base.name}:${tenant}:pirate:1`)).status).toBe(200);
    expect((await first.openai.models.retrieve(`${tenant}/pirate@2`)).id).toBe(`${tenant}/pirate@2`);
    expect((await first.openai.models.list()).data.map(({ id }) => id)).not.toContain(`${tenant}/pirate@2`);

    // Promoted: the version is loaded first, however often the command is repeated.
    line.engine.behaviour.probeDelayMs = 4000;
    const promoted = await first.fetch("/v1/loraline/adapters/pirate/promote", post({ version: 2 }));
    expect(await refusal(promoted)).toMatchObject({ status: 503, code: "version_loading", retryAfter: "2" });
    expect((await line.state())?.alias).toBe(5);
    line.engine.behaviour.probeDelayMs = 0;
    await expect.poll(async () => (await line.state())?.alias, { timeout: 120_000, interval: 50 }).toBe(2);
    await expect.poll(async () => (await line.ask(1, "x")).version, until).toBe(2);

    // Deleted: refused while users get the version; otherwise done once, and then it is gone by every name.
    const remove = (gateway: GatewayUnderTest, model: string) => gateway.fetch(`/v1/models/${model}`, { method: "DELETE" });
    expect(await refusal(await remove(first, `${tenant}/pirate@2`))).toMatchObject({ status: 409, code: "VERSION_PROMOTED" });
    expect(await refusal(await remove(first, `${tenant}/pirate`))).toMatchObject({ status: 400, code: "version_missing" });
    expect(await refusal(await remove(first, `${tenant}/pirate@9`))).toMatchObject({ status: 404, code: "model_not_found" });
    expect(await refusal(await remove(first, base.name))).toMatchObject({ status: 400, code: "model_is_base" });
    expect(await first.openai.models.delete(`ft:${base.name}:${tenant}:pirate:1`)).toEqual({
      id: `ft:${base.name}:${tenant}:pirate:1`,
      object: "model",
      deleted: true,
    });
    const twice = await remove(second, name);
    expect([twice.status, await twice.json()]).toEqual([200, { id: name, object: "model", deleted: true }]);
    for (const gateway of [first, second]) {
      await expect
        .poll(async () => refusal(await chat(gateway, name)), until)
        .toMatchObject({
          status: 404,
          code: "model_not_found",
          message: expect.stringContaining(`Version 1 of ${tenant}/pirate is deleted: it was deleted on `),
        });
    }
    // The version was loaded, and is unloaded now.
    await expect.poll(() => line.engine.loaded.has(one?.engineName ?? ""), { timeout: 120_000, interval: 50 }).toBe(false);
    const unloaded = await line.serve.history([adapterUnloaded], "pirate");
    expect(unloaded.map(({ data }) => (data as { version: number }).version)).toContain(1);
    expect(await refusal(await first.fetch("/v1/loraline/adapters/pirate/promote", post({ version: 1 })))).toMatchObject({
      status: 400,
      code: "version_not_servable",
      message: expect.stringContaining("deleted"),
    });

    // `keep` can be set.
    const kept = await first.fetch("/v1/loraline/adapters/pirate/keep", post({ keep: "all" }));
    expect([kept.status, await kept.json()]).toMatchObject([200, { adapter: { keep: "all" } }]);
    expect(await refusal(await first.fetch("/v1/loraline/adapters/pirate/keep", post({ keep: 0 })))).toMatchObject({ status: 400 });
  },
);
