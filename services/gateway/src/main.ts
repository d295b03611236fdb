/** The gateway as a process of its own, with the projector. */
import { connectBus, createBus } from "@loraline/bus";
import { createJetStreamObjects, createS3Objects } from "@loraline/objects";
import { readSpans, runService } from "@loraline/runtime";
import { z } from "zod";
import { createProjector } from "./projector.ts";
import { createGateway } from "./server.ts";

const bytes = z.coerce.number().int().positive();

await runService({
  service: "gateway",
  host: process,
  env: z.object({
    NATS_URL: z.string().default("nats://127.0.0.1:4222"),
    NATS_USER: z.string().optional(),
    NATS_PASS: z.string().optional(),
    NATS_TOKEN: z.string().optional(),
    S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
    S3_ENDPOINT: z.url().optional(),
    S3_REGION: z.string().optional(),
    HOST: z.string().default("0.0.0.0"),
    PORT: z.coerce.number().int().min(0).max(65_535).default(8080),
    UPLOAD_LIMIT_BYTES: bytes.optional(),
    BODY_LIMIT_BYTES: bytes.optional(),
    LORALINE_SPANS_DIR: z.string().optional(),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectBus({
      servers: env.NATS_URL,
      name: "gateway",
      user: env.NATS_USER,
      pass: env.NATS_PASS,
      token: env.NATS_TOKEN,
    });
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "gateway" });
    const objects =
      env.S3_BUCKET === undefined
        ? await createJetStreamObjects(nc)
        : running.use(createS3Objects({ bucket: env.S3_BUCKET, endpoint: env.S3_ENDPOINT, region: env.S3_REGION }));
    running.use(await createProjector({ bus, log }));
    const { LORALINE_SPANS_DIR: spansDir, UPLOAD_LIMIT_BYTES: uploadLimitBytes, BODY_LIMIT_BYTES: bodyLimitBytes } = env;
    const gateway = await createGateway({
      bus,
      objects,
      log,
      telemetry,
      host: env.HOST,
      port: env.PORT,
      ...(spansDir === undefined ? {} : { readTrace: (traceId: string) => readSpans(spansDir, traceId) }),
      ...(uploadLimitBytes === undefined ? {} : { uploadLimitBytes }),
      ...(bodyLimitBytes === undefined ? {} : { bodyLimitBytes }),
    });
    running.use(gateway);
    return running;
  },
});
