/**
 * Two gateways under load: one is killed in the middle of a stream and of an upload, both are replaced one after the other under a canary
 * and under a limit, and the clocks of all services are stepped. Every answer is right, and what was used is counted exactly.
 */
import { readdir } from "node:fs/promises";
import { request } from "node:http";
import { afterAll, beforeAll, expect, it } from "vitest";
import { eventually, jsonLines, sampleRows, scratchDir, smallTraining } from "../line-under-test.ts";
import { bootstrapKey, type ServiceUnderTest, type SimulatedLine, startSimulatedLine, tenant } from "../services-under-test.ts";
import type { ChatEntry, Entry } from "../soak/history.ts";
import { processOf } from "../soak/client.ts";
import { type Load, observe } from "../soak/under-load.ts";

const owned = new AsyncDisposableStack();
let dir: string;
let line: SimulatedLine;
let first: ServiceUnderTest;
let observed: ReturnType<typeof observe>;
beforeAll(async () => {
  dir = owned.use(await scratchDir()).path;
  line = owned.use(await startSimulatedLine({ dir, gateways: 2, agents: 2, env: { TMPDIR: dir } }));
  first = line.gateways[0] as ServiceUnderTest;
  observed = observe({ ...line, adapters: ["anna"] });
});
afterAll(() => owned.disposeAsync());

const post = (gateway: ServiceUnderTest, path: string, headers: Record<string, string>) =>
  request(gateway.url + path, { method: "POST", headers: { authorization: `Bearer ${bootstrapKey}`, ...headers } });

/** Opens a stream, and kills the gateway after its first event. @returns all that the client got. */
async function killInStream(load: Load): Promise<string> {
  for (const { behaviour } of line.engines) behaviour.chatDelayMs = 500;
  const asking = post(first, "/v1/chat/completions", { "content-type": "application/json" });
  const got = await new Promise<string>((resolve, reject) => {
    asking.on("error", reject).on("response", (response) => {
      let text = "";
      response.once("data", () => void load.crash(first));
      response.on("data", (chunk: Buffer) => (text += chunk.toString()));
      response.on("close", () => resolve(text)).on("error", () => {});
    });
    asking.end(JSON.stringify({ model: `${tenant}/anna`, stream: true, messages: [{ role: "user", content: "Who are you?" }] }));
  });
  for (const { behaviour } of line.engines) behaviour.chatDelayMs = 0;
  return got;
}

/** Sends half of a file, and kills the gateway. */
async function killInUpload(load: Load, key: string): Promise<void> {
  const headers = { "content-type": "multipart/form-data; boundary=x", "transfer-encoding": "chunked", "idempotency-key": key };
  const sending = post(first, "/v1/files", headers);
  const broken = new Promise((resolve) => sending.on("error", resolve).on("close", resolve));
  sending.write('--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n');
  sending.write('--x\r\ncontent-disposition: form-data; name="file"; filename="half.jsonl"\r\n\r\n');
  sending.write(`{"instruction": "Say half", "output": "${"half ".repeat(50_000)}`);
  await eventually("the gateway has begun to keep it", 120_000, async () =>
    (await readdir(dir)).some((name) => name.endsWith(".upload")) ? true : undefined,
  );
  await load.crash(first);
  await broken;
}

it("one is killed in the middle of a stream, and of an upload", { timeout: 900_000 }, async () => {
  const findings = await observed.findings(async (load) => {
    const got = await killInStream(load);
    expect(got, "the stream began").toMatch(/^data: \{/);
    expect(got, "and the client sees that it did not end").not.toContain("[DONE]");
    await load.answers(20);
    await first.spawn();
    await first.ready();

    await killInUpload(load, "upload-half.jsonl");
    await first.spawn();
    await load.client.upload("half.jsonl", '{"instruction": "Say half", "output": "One half."}\n');
    await load.answers(10, first);
  });
  expect(findings).toEqual([]);
});

const answeredBy = (history: readonly Entry[], adapter: string): ChatEntry[] =>
  history.filter((entry): entry is ChatEntry => entry.kind === "chat" && entry.outcome === "answered" && entry.adapter === adapter);

/** Gateways know the clock of NATS to within half the time of an answer, and ignore answers that take longer than a second. */
const clockErrorMs = 500;

/** Most answers that surely fell into one minute of NATS' clock, which is this machine's, as gateways know it. */
function mostInAMinute(chats: readonly ChatEntry[]): number {
  const minuteOf = (ms: number): number => Math.floor(ms / 60_000);
  const within = chats.filter(({ at, until }) => minuteOf(at - clockErrorMs) === minuteOf(until + clockErrorMs));
  return Math.max(0, ...[...Map.groupBy(within, ({ at }) => minuteOf(at)).values()].map((its) => its.length));
}

/** Stops each gateway in order and starts it again, as a rolling update does, and calls back when the new process is ready. */
async function replaceAll(load: Load, then: (gateway: ServiceUnderTest) => Promise<void>): Promise<void> {
  for (const gateway of line.gateways) {
    await load.stop(gateway);
    await gateway.spawn();
    await gateway.ready();
    await then(gateway);
  }
}

/**
 * Replaces all gateways as above. @returns the chats of the processes that this started, and of no other: one that ran before may answer
 * its first chat only afterwards, and has admitted it before the limit or the canary was set.
 */
async function chatsWhileReplaced(load: Load, then: (gateway: ServiceUnderTest, chats: () => ChatEntry[]) => Promise<void>) {
  const before = new Set(line.gateways.map(processOf));
  const from = observed.history.length;
  const chats = (): ChatEntry[] =>
    observed.history.slice(from).filter((entry): entry is ChatEntry => entry.kind === "chat" && !before.has(entry.process));
  await replaceAll(load, (gateway) => then(gateway, chats));
  return chats();
}

/** Another version, which nothing promotes. @returns its number. */
async function trainAnother({ client }: Load): Promise<number> {
  const file = await client.upload("canary.jsonl", jsonLines(await sampleRows(20)));
  const run = await client.run("canary", "anna", file ?? "", { ...smallTraining, promote: "manual" });
  await eventually("it is served", 200_000, async () => ((await client.phase(run ?? "")) === "served" ? true : undefined));
  const version = (await client.look("anna"))?.versions.at(-1)?.version;
  if (version === undefined) throw new Error("anna is not shown");
  return version;
}

it("both are replaced one after the other under a canary: each user has one version", { timeout: 900_000 }, async () => {
  let answered: ChatEntry[] = [];
  const findings = await observed.findings(
    async (load) => {
      const { client } = load;
      const version = await trainAnother(load);
      // Processes that have just started answer slowly. A canary that is rolled back for that changes its users' version, as it should.
      const canary = { steps: [50], interval_s: 86_400, max_error_rate: 1, max_latency_ratio: 1000 };
      expect(await client.move("promote", "anna", { version, canary })).toBeUndefined();
      const chats = await chatsWhileReplaced(load, async (via) => {
        for (let n = 0; n < 20; n++) await client.chat("anna", "Which one are you?", { stream: false, via, user: `user-${n}` });
      });
      answered = answeredBy(chats, "anna");
      expect((await client.look("anna"))?.moves.at(-1), "the canary is still under way").toMatchObject({
        kind: "canary-started",
        to: version,
      });
      expect(await client.move("promote", "anna", { version })).toBeUndefined();
    },
    { commands: false },
  );
  expect(findings).toEqual([]);
  const versions = [...Map.groupBy(answered, ({ user }) => user)].map(([user, its]) => ({
    user,
    has: [...new Set(its.map(({ version }) => version))],
  }));
  expect(versions).toHaveLength(20);
  expect(versions.filter(({ has }) => has.length !== 1)).toEqual([]);
  expect(new Set(versions.flatMap(({ has }) => has)).size, "some have the canary, others do not").toBe(2);
});

it("both are replaced one after the other under a limit: it holds", { timeout: 900_000 }, async () => {
  const few = 60;
  let answered: ChatEntry[] = [];
  const findings = await observed.findings(
    async (load) => {
      const { client } = load;
      await client.limit("anna", { requests_per_minute: few });
      const chats = await chatsWhileReplaced(load, async (gateway, soFar) => {
        const isRefusal = ({ process, status }: ChatEntry): boolean => process === processOf(gateway) && status === 429;
        await eventually(`${gateway.id} has refused a chat`, 120_000, () => (soFar().some(isRefusal) ? true : undefined));
      });
      answered = answeredBy(chats, "anna");
      await client.limit("anna", { requests_per_minute: 100_000 });
    },
    { commands: false },
  );
  expect(findings).toEqual([]);
  expect(mostInAMinute(answered)).toBeLessThanOrEqual(few);
});

const perMinute = 300;

it("the clocks of all services are stepped by an hour, forwards and back", { timeout: 900_000 }, async () => {
  let from = 0;
  const hour = 3_600_000;
  const findings = await observed.findings(async (load) => {
    const { client, history } = load;
    await client.limit("anna", { requests_per_minute: perMinute });
    // What both gateways had admitted before they saw the limit is answered by then.
    await load.answers(20);
    from = history.length;
    for (const [n, service] of line.services.all.entries()) {
      await service.stepClock(n % 2 === 0 ? hour : -hour);
      await load.answers(5);
    }
    await load.nextRun();
    for (const service of line.services.all) await service.stepClock(0);
    await load.answers(5);
    await load.nextRun();
  });
  expect(findings).toEqual([]);
  expect(mostInAMinute(answeredBy(observed.history.slice(from), "anna"))).toBeLessThanOrEqual(perMinute);
});
