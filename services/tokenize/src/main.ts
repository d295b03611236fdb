/** The tokenize worker as a process of its own. */
import { connectBus, createBus } from "@loraline/bus";
import { createJetStreamObjects, createS3Objects } from "@loraline/objects";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { createTokenizeService } from "./tokenize-service.ts";

await runService({
  service: "tokenize",
  host: process,
  env: z.object({
    NATS_URL: z.string().default("nats://127.0.0.1:4222"),
    NATS_USER: z.string().optional(),
    NATS_PASS: z.string().optional(),
    NATS_TOKEN: z.string().optional(),
    S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
    S3_ENDPOINT: z.url().optional(),
    S3_REGION: z.string().optional(),
    LORALINE_BASES_DIR: z.string().describe("Bases in Hugging Face's layout, each with a base.json."),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectBus({
      servers: env.NATS_URL,
      name: "tokenize",
      user: env.NATS_USER,
      pass: env.NATS_PASS,
      token: env.NATS_TOKEN,
    });
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "tokenize" });
    const objects =
      env.S3_BUCKET === undefined
        ? await createJetStreamObjects(nc)
        : running.use(createS3Objects({ bucket: env.S3_BUCKET, endpoint: env.S3_ENDPOINT, region: env.S3_REGION }));
    running.use(await createTokenizeService({ bus, objects, log, telemetry, basesDir: env.LORALINE_BASES_DIR }));
    return running;
  },
});
