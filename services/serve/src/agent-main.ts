/** The serve agent as a process of its own, beside one vLLM process. */
import { joinBus, natsEnv } from "@loraline/bus";
import { defaultEngineKind, engineKindName } from "@loraline/contracts";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { leaveLimits } from "./agent/drain.ts";
import { createAgentService } from "./agent/service.ts";

/** Part of a KV key. */
const token = z.string().regex(/^[\w-]+$/, "letters, digits, dashes and underscores only");

await runService({
  service: "agent",
  host: process,
  env: z.object({
    ...natsEnv,
    ...objectsEnv,
    AGENT_ENGINE: token.describe("Name of the engine, as in KV engines."),
    AGENT_REPLICA: token.describe("Identity of this replica: the pod's UID."),
    POD_NAME: z.string().optional(),
    AGENT_ENGINE_KIND: engineKindName.default(defaultEngineKind).describe("What program the engine is."),
    AGENT_BASE: z.string().describe("Name of the base, as the engine serves it: vLLM's --served-model-name."),
    AGENT_ENGINE_URL: z.url().default("http://127.0.0.1:8000").describe("Where this process reaches the engine."),
    ENGINE_API_KEY: z.string().optional().describe("The key that the engine was started with: vLLM's VLLM_API_KEY."),
    AGENT_LEAVE_S: z.coerce
      .number()
      .min(0)
      .default(leaveLimits.mostMs / 1000)
      .describe("How long /drain waits for requests in flight: less than the pod's grace period, by as much as the engine takes to end."),
    AGENT_PUBLIC_URL: z.url().describe("Where the gateway reaches the engine."),
    AGENT_ADAPTERS_DIR: z.string().describe("Belongs to this process alone; the engine sees it under the same path."),
  }),
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "agent", `agent ${env.AGENT_REPLICA}`));
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    const agent = running.use(
      await createAgentService({
        bus,
        objects,
        log,
        telemetry,
        engine: env.AGENT_ENGINE,
        engineKind: env.AGENT_ENGINE_KIND,
        replica: env.AGENT_REPLICA,
        pod: env.POD_NAME,
        base: env.AGENT_BASE,
        engineUrl: env.AGENT_ENGINE_URL,
        engineKey: env.ENGINE_API_KEY,
        leave: { mostMs: env.AGENT_LEAVE_S * 1000 },
        publicUrl: env.AGENT_PUBLIC_URL,
        adaptersDir: env.AGENT_ADAPTERS_DIR,
      }),
    );
    service.health.check("engine", agent.unready);
    service.health.route("/drain", async () => ({ status: 200, body: await agent.drain() }));
    return running;
  },
});
