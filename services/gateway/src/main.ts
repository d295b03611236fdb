/** The gateway as a process of its own, with the projector. */
import { connectFromEnv, createBus, natsEnv } from "@loraline/bus";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { readSpans, runService } from "@loraline/runtime";
import { z } from "zod";
import { createProjector } from "./projector.ts";
import { createGateway } from "./server.ts";

const bytes = z.coerce.number().int().positive();

await runService({
  service: "gateway",
  host: process,
  env: z.object({
    ...natsEnv,
    ...objectsEnv,
    HOST: z.string().default("0.0.0.0"),
    PORT: z.coerce.number().int().min(0).max(65_535).default(8080),
    UPLOAD_LIMIT_BYTES: bytes.optional(),
    BODY_LIMIT_BYTES: bytes.optional(),
    LORALINE_SPANS_DIR: z.string().optional(),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectFromEnv(env, "gateway");
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "gateway" });
    const objects = running.use(await objectsFromEnv(env, nc));
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
