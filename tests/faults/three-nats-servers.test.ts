/**
 * Three NATS servers hold every stream. One of them is killed and loses the last seconds of its disk, is cut off from the others, and is so
 * slow that each write takes long. Nothing that was acknowledged is lost or done twice, and the line goes on by itself.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { jetstreamManager } from "@nats-io/jetstream";
import type { NatsCluster } from "@loraline/testkit";
import { afterEach, beforeEach, expect, it } from "vitest";
import { eventually, scratchDir } from "../line-under-test.ts";
import { type SimulatedLine, startReplicatedLine } from "../services-under-test.ts";
import { observe } from "../soak/under-load.ts";

let owned: AsyncDisposableStack;
let line: SimulatedLine<NatsCluster>;
let observed: ReturnType<typeof observe>;
// Each on servers of its own, so that one that fails leaves the others a line that works.
beforeEach(async () => {
  owned = new AsyncDisposableStack();
  const scratch = owned.use(await scratchDir());
  line = owned.use(await startReplicatedLine({ dir: scratch.path, gateways: 2, agents: 2 }));
  observed = observe({ ...line, adapters: ["anna"] });
});
afterEach(() => owned.disposeAsync());

/** Index of the server that leads a stream now. */
const leaderOf = (stream: string): Promise<number> =>
  eventually(`${stream} has a leader`, 120_000, async () => {
    const { cluster } = await (await jetstreamManager(line.nc)).streams.info(stream);
    const index = line.nats.servers.findIndex(({ name }) => name === cluster?.leader);
    return index === -1 ? undefined : index;
  });

/** All three servers have all of every stream. */
const inStep = (): Promise<boolean> =>
  eventually("all servers are in step", 120_000, async () => {
    for await (const { config, cluster } of (await jetstreamManager(line.nc)).streams.list()) {
      const others = cluster?.replicas ?? [];
      if (others.length !== 2 || others.some(({ current, offline }) => !current || offline === true))
        throw new Error(`${config.name} is not`);
    }
    return true;
  });

it("one is killed, and comes back without the last seconds of its disk", async () => {
  const findings = await observed.findings(async (load) => {
    const index = await leaderOf("RUNS");
    const setBack = await line.nats.snapshot(index);
    await load.nextRun();
    await line.nats.servers[index]?.kill();
    await load.nextRun();
    await load.answers(20);
    await setBack();
    await line.nats.servers[index]?.start();
    await load.nextRun();
    await inStep();
  });
  expect(findings).toEqual([]);
});

it("one is cut off from the others, with those that speak to it", async () => {
  const findings = await observed.findings(async (load) => {
    const index = await leaderOf("RUNS");
    await line.nats.partition(index);
    // The others elect a leader; chats need none.
    await load.answers(40);
    await sleep(10_000);
    await load.answers(20);
    await line.nats.heal();
    await load.nextRun();
    await inStep();
  });
  expect(findings).toEqual([]);
});

it("one is so slow that all of its writes wait, as on a disk that is failing", async () => {
  const findings = await observed.findings(async (load) => {
    const slow = line.nats.servers[await leaderOf("RUNS")];
    let going = true;
    const pauses = (async () => {
      while (going) {
        if (slow?.pid !== undefined) process.kill(slow.pid, "SIGSTOP");
        await sleep(400);
        if (slow?.pid !== undefined) process.kill(slow.pid, "SIGCONT");
        await sleep(100);
      }
    })();
    await load.nextRun();
    await load.answers(20);
    going = false;
    await pauses;
    await inStep();
  });
  expect(findings).toEqual([]);
});
