/**
 * What is stored goes bad: entries of KV that are no entries, a blob with other bytes, files of a replica with other bytes; and a store that
 * is set back to a backup. Each time nobody gets a wrong answer, and the line goes on.
 */
import { cp, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { buckets, Digest } from "@loraline/contracts";
import { createJetStreamObjects, getBytes } from "@loraline/objects";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { afterAll, beforeAll, expect, it } from "vitest";
import { eventually, loraline, scratchDir } from "../line-under-test.ts";
import { bootstrapKey, type ServiceUnderTest, type SimulatedLine, startSimulatedLine, tenant } from "../services-under-test.ts";
import { type Load, observe } from "../soak/under-load.ts";

const owned = new AsyncDisposableStack();
let dir: string;
let line: SimulatedLine;
let observed: ReturnType<typeof observe>;
beforeAll(async () => {
  dir = owned.use(await scratchDir()).path;
  line = owned.use(await startSimulatedLine({ dir, agents: 2 }));
  observed = observe({ ...line, adapters: ["anna"] });
});
afterAll(() => owned.disposeAsync());

const restart = async (services: readonly ServiceUnderTest[], meanwhile = async () => {}): Promise<void> => {
  await Promise.all(services.map((service) => service.kill("SIGTERM")));
  await meanwhile();
  await Promise.all(services.map((service) => service.spawn()));
  await Promise.all(services.map((service) => service.ready()));
};

const ulid = "01JD0000000000000000000000";
/** A key of each bucket that others have to live beside. */
const keys: Record<keyof typeof buckets, string> = {
  adapters: `${tenant}.broken`,
  runs: `${tenant}.${ulid}`,
  datasets: `${tenant}.${ulid}`,
  replicas: "local.broken",
  holdings: `local.broken.${tenant}.anna`,
  assignments: `local.-.${tenant}.broken`,
  engines: "broken",
  waited: "tokenize-run-requested.999999",
  cache: `ingest.${tenant}.${"0".repeat(64)}`,
  traffic: ulid,
  limits: `${tenant}.broken`,
  training: "broken",
  budgets: `${tenant}.broken`,
  usage: `${tenant}.2026-01-01.broken.${ulid}`,
  uploads: `${tenant}.${ulid}`,
  responses: `${tenant}.${ulid}`,
  deletions: `${tenant}.dataset.${ulid}`,
  leases: "broken",
  sessions: `${tenant}.${"0".repeat(64)}`,
  keys: "0".repeat(64),
};

it("entries of every bucket that cannot be read: all else goes on, also for services that start", async () => {
  const findings = await observed.findings(async (load) => {
    const js = jetstream(line.nc);
    for (const [bucket, key] of Object.entries(keys)) {
      for (const bytes of ["{ no entry", '{"tenant": 7}']) await js.publish(`$KV.${bucket}.${key}`, bytes);
    }
    // These follow from other entries, and whoever writes them writes them again when it starts.
    const derived = [`assignments.local.-.${tenant}.anna`, `training.${tenant}`];
    for (const key of derived) await js.publish(`$KV.${key}`, "{ no entry");
    await restart(line.services.all.filter(({ program }) => program !== "gateway"));
    const [first] = line.gateways;
    if (first === undefined) throw new Error("no gateway");
    await load.stop(first);
    await first.spawn();
    await first.ready();
    const client = gateway();
    expect((await client.listAdapters()).data.map(({ adapter }) => adapter.adapter)).toContain("anna");
    expect((await client.listRuns()).data.length).toBeGreaterThan(0);
    await load.nextRun();
    await load.answers(20);
    const jsm = await jetstreamManager(line.nc);
    for (const key of derived) {
      const entry = await jsm.streams.getMessage(`KV_${key.split(".")[0]}`, { last_by_subj: `$KV.${key}` });
      expect(entry?.string(), key).not.toBe("{ no entry");
    }
    for (const [bucket, key] of Object.entries(keys)) await jsm.streams.purge(`KV_${bucket}`, { filter: `$KV.${bucket}.${key}` });
  });
  expect(findings).toEqual([]);
});

const gateway = () => {
  const [first] = line.gateways;
  if (first === undefined) throw new Error("no gateway");
  return line.services.client(first);
};

/** What the replicas hold of an adapter's promoted version. */
async function heldOf(adapter: string) {
  const view = await gateway().getAdapter({ adapter });
  const version = view.adapter.versions.find((known) => known.version === view.adapter.alias);
  if (version === undefined) throw new Error("nothing is promoted");
  const held = new Map(
    view.replicas.flatMap(({ replica, adapters }) =>
      adapters.filter((one) => one.version === version.version).map((one) => [replica, one] as const),
    ),
  );
  return { digest: version.digest, held };
}
const provenBy = (adapter: string, { id }: ServiceUnderTest): Promise<true> =>
  eventually(`${id} has proven ${adapter}`, 240_000, async () =>
    (await heldOf(adapter)).held.get(id)?.state === "proven" ? true : undefined,
  );

/** Trains an adapter from rows of its own, so that no other adapter has the same files. */
async function serveAnother(load: Load, adapter: string): Promise<void> {
  const file = await load.client.upload(
    `${adapter}.jsonl`,
    `${JSON.stringify({ instruction: "Who?", output: `It is ${adapter}.` })}\n`.repeat(20),
  );
  const lora = { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] };
  const run = file && (await load.client.run(`of-${adapter}`, adapter, file, { lora, gate: "none", promote: "auto" }));
  if (!run) throw new Error("the run was not taken");
  await eventually(`${adapter} is served`, 120_000, async () => ((await load.client.phase(run)) === "served" ? true : undefined));
  load.served.add(adapter);
}

it("other bytes in a replica's files, and in the store under it", async () => {
  const [agent1, agent2] = line.services.all.filter(({ program }) => program === "agent") as [ServiceUnderTest, ServiceUnderTest];
  const findings = await observed.findings(
    async (load) => {
      await eventually("no run is open", 120_000, () => (load.open.size === 0 ? true : undefined));
      await serveAnother(load, "boris");
      for (const agent of [agent1, agent2]) for (const adapter of ["anna", "boris"]) await provenBy(adapter, agent);

      // On the disk of the first replica, whose engine then starts anew.
      for (const path of await readdir(join(dir, "adapters", agent1.id), { recursive: true })) {
        if (path.endsWith("adapter_model.safetensors")) await writeFile(join(dir, "adapters", agent1.id, path), Buffer.alloc(200, 7));
      }
      await line.engines[0]?.stop();
      await line.engines[0]?.start();
      await load.answers(20);
      for (const adapter of ["anna", "boris"]) await provenBy(adapter, agent1);

      // In the store, for a replica that has lost its disk.
      const objects = await createJetStreamObjects(line.nc);
      const manifest = { kind: "adapter", digest: (await heldOf("anna")).digest } as const;
      const { files } = JSON.parse(Buffer.from(await getBytes(objects, tenant, manifest)).toString()) as {
        files: { path: string; blob: { digest: Digest } }[];
      };
      const digest = files.find(({ path }) => path === "adapter_model.safetensors")?.blob.digest as Digest;
      const right = Buffer.from(await getBytes(objects, tenant, { kind: "adapter-file", digest }));
      await corrupt(`${tenant}/adapter-file/${digest.replace(":", "/")}`, Buffer.alloc(right.length, 7));
      await agent2.kill();
      await line.engines[1]?.stop();
      await rm(join(dir, "adapters", agent2.id), { recursive: true });
      await line.engines[1]?.start();
      await agent2.spawn();
      await provenBy("boris", agent2);
      const bad = await eventually("it says what is wrong with anna", 120_000, async () => {
        const one = (await heldOf("anna")).held.get(agent2.id);
        return one?.error ? one : undefined;
      });
      expect(bad).toMatchObject({ proof: null, error: { code: "OBJECT_CORRUPT" } });
      const shown = await loraline({ url: line.gateways[0]?.url ?? "", apiKey: bootstrapKey }, ["adapters", "anna"]);
      expect(shown.out + shown.err).toContain("OBJECT_CORRUPT");
      // By the other replica, and with the version that was promoted.
      await load.answers(20);
      expect((await heldOf("anna")).digest).toBe(manifest.digest);
      expect(line.engines[1]?.loaded.has(bad.engineName)).toBe(false);

      await objects.delete(tenant, { kind: "adapter-file", digest });
      await objects.put(tenant, "adapter-file", right);
      await provenBy("anna", agent2);
    },
    { commands: false },
  );
  expect(findings).toEqual([]);
});

/** Replaces the chunks of a blob in NATS' object store, as a bad disk may; its entry stays. */
async function corrupt(name: string, bytes: Uint8Array): Promise<void> {
  const entry = await (
    await jetstreamManager(line.nc)
  ).streams.getMessage("OBJ_objects", {
    last_by_subj: `$O.objects.M.${Buffer.from(name)
      .toString("base64url")
      .padEnd(Math.ceil(name.length / 3) * 4, "=")}`,
  });
  const { nuid } = JSON.parse(new TextDecoder().decode(entry?.data)) as { nuid: string };
  await (await jetstreamManager(line.nc)).streams.purge("OBJ_objects", { filter: `$O.objects.C.${nuid}` });
  await jetstream(line.nc).publish(`$O.objects.C.${nuid}`, bytes);
}

it("a store that is set back to a backup: all that was acknowledged before is there, and all goes on from it", async () => {
  const backup = join(dir, "backup");
  expect(await observed.findings((load) => load.nextRun())).toEqual([]);
  // As a snapshot of the volume is taken: while the server runs.
  await cp(line.nats.storeDir, backup, { recursive: true });
  // What follows is lost with the store.
  await observe({ ...line, adapters: ["anna", "later"], seed: 1 }).underLoad((load) => load.nextRun());
  await restart(line.services.all, async () => {
    await line.nats.kill();
    await rm(line.nats.storeDir, { recursive: true });
    await cp(backup, line.nats.storeDir, { recursive: true });
    await line.nats.start();
  });
  const findings = await observed.findings(async (load) => {
    await load.answers(20);
    await load.nextRun();
  });
  expect(findings).toEqual([]);
});
