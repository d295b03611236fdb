/** The serve controller as a process of its own. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { followNats, joinBus, type KvBucket, natsEnv, quotasEnv } from "@loraline/bus";
import { buckets, type EngineRecord, engineRecord } from "@loraline/contracts";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { type Log, PermanentError, runService } from "@loraline/runtime";
import { z } from "zod";
import { describeBase } from "@loraline/models";
import { createCollector } from "@loraline/storage";
import { createServeService } from "./controller/service.ts";
import { watchBases, withWhatWasKnown } from "./controller/engine-records.ts";
import { readEngineSettings } from "./setup/describe-engines.ts";
import { followEngineResources } from "./setup/engine-resources.ts";

/** Empty: nothing is served yet. */
const engineList = z.array(engineRecord.omit({ updatedAt: true }));

await runService({
  service: "serve",
  host: process,
  env: z.object({
    ...natsEnv,
    ...quotasEnv,
    ...objectsEnv,
    NATS_MONITORS: z
      .string()
      .transform((text) => text.split(","))
      .pipe(z.array(z.url()))
      .optional()
      .describe("Base URLs of the NATS servers' monitors, separated by commas: their numbers then stand among this service's metrics."),
    SERVE_BASES_DIR: z
      .string()
      .optional()
      .describe("Bases in Hugging Face's layout, by name: what is asked for is then judged by their modules before anything is spent."),
    SERVE_ENGINE_RESOURCES: z
      .string()
      .optional()
      .describe("JSON list of the settings of engines that come and go while serve runs; looked at again and again. It may be absent."),
    SERVE_ENGINES_FILE: z.string().describe("JSON list of engines: engine, base {name, revision, digest}, maxLoraRank, maxLoras, …"),
  }),
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "serve"));
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    if (env.NATS_MONITORS !== undefined) followNats({ metrics: telemetry.metrics, monitors: env.NATS_MONITORS });
    const updatedAt = new Date().toISOString();
    const dir = env.SERVE_BASES_DIR;
    const modulesOf = async (base: string) => (dir === undefined ? undefined : await describeBase(join(dir, base)));
    const bucket = await bus.bucket(buckets.engines);
    const engines = await Promise.all(
      (await readEngines(env.SERVE_ENGINES_FILE)).map(async (described): Promise<EngineRecord> => {
        const record = withWhatWasKnown(described, described.problem ? (await bucket.get(described.engine))?.value : undefined);
        return { ...record, modules: record.modules ?? (await modulesOf(record.base.name)), updatedAt };
      }),
    );
    for (const { engine, base, problem } of engines) {
      if (problem) log.error({ engine, base: base.name, ...problem }, `nothing new is made for this engine: ${problem.message}`);
    }
    const file = env.SERVE_ENGINE_RESOURCES;
    const coming = file === undefined ? [] : await readEngineSettings(file, []).catch(() => undefined);
    // Where it is not known which engines there are besides, none is forgotten.
    if (coming !== undefined) await forgetOthers(bucket, new Set([...engines, ...coming].map(({ engine }) => engine)), log);
    const serving = running.use(await createServeService({ bus, objects, log, telemetry, engines, quotas: env.LORALINE_QUOTAS }));
    if (file !== undefined && dir !== undefined) {
      const follower = await followEngineResources({
        file,
        basesDir: dir,
        log,
        async onEngine(described) {
          const record = withWhatWasKnown(described, described.problem ? (await bucket.get(described.engine))?.value : undefined);
          const modules = record.modules ?? (await modulesOf(record.base.name));
          await serving.setEngine({ ...record, modules, updatedAt: new Date().toISOString() });
        },
        onGone: serving.removeEngine,
      });
      running.use(follower);
    }
    running.use(await createCollector({ nc, bus, objects, log, inJetStream: env.S3_BUCKET === undefined }));
    if (dir !== undefined) running.use(watchBases({ engines: bucket, records: engines, basesDir: dir, log }));
    return running;
  },
});

/** Engines that are not set up any more: a run for one of them would wait for ever. */
async function forgetOthers(known: KvBucket<EngineRecord>, names: ReadonlySet<string>, log: Log): Promise<void> {
  for (const { key } of await known.entries(">", { skipUnreadable: true })) {
    if (names.has(key)) continue;
    await known.delete(key);
    log.warn({ engine: key }, "this engine is not set up any more; it is taken out of KV engines");
  }
}

async function readEngines(path: string): Promise<z.infer<typeof engineList>> {
  try {
    return engineList.parse(JSON.parse(await readFile(path, "utf8")));
  } catch (error) {
    throw new PermanentError("ENGINES_INVALID", `SERVE_ENGINES_FILE ${path} is not a list of engines: ${(error as Error).message}`, {
      param: "SERVE_ENGINES_FILE",
      cause: error,
    });
  }
}
