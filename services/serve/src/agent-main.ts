/** The serve agent as a process of its own, beside one vLLM process. */
import { connectBus, createBus } from "@loraline/bus";
import { createJetStreamObjects, createS3Objects } from "@loraline/objects";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { createServeAgent } from "./agent.ts";

/** Part of a KV key. */
const token = z.string().regex(/^[\w-]+$/, "letters, digits, dashes and underscores only");

await runService({
  service: "agent",
  host: process,
  env: z.object({
    NATS_URL: z.string().default("nats://127.0.0.1:4222"),
    NATS_USER: z.string().optional(),
    NATS_PASS: z.string().optional(),
    NATS_TOKEN: z.string().optional(),
    S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
    S3_ENDPOINT: z.url().optional(),
    S3_REGION: z.string().optional(),
    AGENT_ENGINE: token.describe("Name of the engine, as in KV engines."),
    AGENT_REPLICA: token.describe("Identity of this replica: the pod's UID."),
    AGENT_BASE: z.string().describe("The engine's --served-model-name."),
    AGENT_ENGINE_URL: z.url().default("http://127.0.0.1:8000").describe("Where this process reaches vLLM."),
    AGENT_PUBLIC_URL: z.url().describe("Where the gateway reaches vLLM."),
    AGENT_ADAPTERS_DIR: z.string().describe("Belongs to this process alone; vLLM sees it under the same path."),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectBus({
      servers: env.NATS_URL,
      name: `agent ${env.AGENT_REPLICA}`,
      user: env.NATS_USER,
      pass: env.NATS_PASS,
      token: env.NATS_TOKEN,
    });
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "agent" });
    const objects =
      env.S3_BUCKET === undefined
        ? await createJetStreamObjects(nc)
        : running.use(createS3Objects({ bucket: env.S3_BUCKET, endpoint: env.S3_ENDPOINT, region: env.S3_REGION }));
    running.use(
      await createServeAgent({
        bus,
        objects,
        log,
        telemetry,
        engine: env.AGENT_ENGINE,
        replica: env.AGENT_REPLICA,
        base: env.AGENT_BASE,
        engineUrl: env.AGENT_ENGINE_URL,
        publicUrl: env.AGENT_PUBLIC_URL,
        adaptersDir: env.AGENT_ADAPTERS_DIR,
      }),
    );
    return running;
  },
});
