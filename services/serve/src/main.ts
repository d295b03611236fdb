/** The serve controller as a process of its own. */
import { readFile } from "node:fs/promises";
import { connectBus, createBus } from "@loraline/bus";
import { engineRecord } from "@loraline/contracts";
import { createJetStreamObjects, createS3Objects } from "@loraline/objects";
import { PermanentError, runService } from "@loraline/runtime";
import { z } from "zod";
import { createServeController } from "./controller.ts";

const engineList = z.array(engineRecord.omit({ updatedAt: true })).min(1);

await runService({
  service: "serve",
  host: process,
  env: z.object({
    NATS_URL: z.string().default("nats://127.0.0.1:4222"),
    NATS_USER: z.string().optional(),
    NATS_PASS: z.string().optional(),
    NATS_TOKEN: z.string().optional(),
    S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
    S3_ENDPOINT: z.url().optional(),
    S3_REGION: z.string().optional(),
    SERVE_ENGINES_FILE: z.string().describe("JSON list of engines: engine, base {name, revision, digest}, maxLoraRank, maxLoras, …"),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectBus({
      servers: env.NATS_URL,
      name: "serve",
      user: env.NATS_USER,
      pass: env.NATS_PASS,
      token: env.NATS_TOKEN,
    });
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "serve" });
    const objects =
      env.S3_BUCKET === undefined
        ? await createJetStreamObjects(nc)
        : running.use(createS3Objects({ bucket: env.S3_BUCKET, endpoint: env.S3_ENDPOINT, region: env.S3_REGION }));
    const updatedAt = new Date().toISOString();
    const engines = (await readEngines(env.SERVE_ENGINES_FILE)).map((record) => ({ ...record, updatedAt }));
    running.use(await createServeController({ bus, objects, log, telemetry, engines }));
    return running;
  },
});

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
