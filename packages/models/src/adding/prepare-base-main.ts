/** The program of a Base's Job: brings the base onto the volume, and leaves its reference, or why there is none, as the container's last words. */
import { readFile, writeFile } from "node:fs/promises";
import { createLog, loadEnv } from "@loraline/runtime";
import { z } from "zod";
import { prepareBase } from "./prepare-base.ts";

const log = createLog({ service: "prepare-base", level: process.env["LOG_LEVEL"] ?? "info" });
const ending = new AbortController();
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => ending.abort());
// `kubectl describe pod` and the operator read this file.
const lastWords = (text: string): Promise<void> =>
  writeFile(process.env["TERMINATION_LOG"] ?? "/dev/termination-log", text.slice(0, 4000)).catch(() => {});
try {
  const env = loadEnv(
    z.object({
      BASE_NAME: z.string().describe("Folder of the base."),
      BASE_HUB: z.string().optional().describe("organisation/name on the hub; absent: somebody else puts the folder there."),
      BASE_REVISION: z.string().optional().describe("Branch, tag or commit. Absent: the hub's newest."),
      LORALINE_BASES_DIR: z.string(),
      LORALINE_PYTHON: z.string().describe("A Python with huggingface_hub."),
      HF_TOKEN_FILE: z.string().optional(),
    }),
    process.env,
  );
  const token = env.HF_TOKEN_FILE === undefined ? {} : { HF_TOKEN: (await readFile(env.HF_TOKEN_FILE, "utf8")).trim() };
  const ref = await prepareBase({
    name: env.BASE_NAME,
    hub: env.BASE_HUB,
    revision: env.BASE_REVISION,
    basesDir: env.LORALINE_BASES_DIR,
    python: env.LORALINE_PYTHON,
    env: { ...process.env, ...token },
    signal: ending.signal,
    progress: process.stderr,
  });
  log.info({ base: ref }, "the base is on the volume");
  await lastWords(JSON.stringify(ref));
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  log.fatal({ err: error }, message);
  await lastWords(message);
  process.exitCode = 1;
}
