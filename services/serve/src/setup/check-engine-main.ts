/** Runs before an engine starts: refuses settings that can never work, and writes the files with which the engine is started. */
import { writeFile } from "node:fs/promises";
import { createLog, loadEnv } from "@loraline/runtime";
import { z } from "zod";
import { prepareEngine, readEngineSettings } from "./describe-engines.ts";

const log = createLog({ service: "check-engine", level: process.env.LOG_LEVEL ?? "info" });
try {
  const env = loadEnv(
    z.object({
      ENGINES_CONFIG: z.string().describe("JSON list of engineSettings."),
      AGENT_ENGINE: z.string().describe("Which of them."),
      LORALINE_BASES_DIR: z.string(),
      ENGINE_DIR: z.string().default("/engine").describe("Where the engine finds its chat template and its other files."),
    }),
    process.env,
  );
  const settings = await readEngineSettings(env.ENGINES_CONFIG);
  await prepareEngine({ settings, engine: env.AGENT_ENGINE, basesDir: env.LORALINE_BASES_DIR, dir: env.ENGINE_DIR });
  log.info({ engine: env.AGENT_ENGINE }, "nothing speaks against this engine");
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  log.fatal({ err: error }, message);
  // `kubectl describe pod` shows the content of this file.
  await writeFile(process.env.TERMINATION_LOG ?? "/dev/termination-log", message.slice(0, 4000)).catch(() => {});
  process.exitCode = 1;
}
