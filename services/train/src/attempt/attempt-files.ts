/**
 * The files of an attempt, in a folder of its own:
 *
 *   attempt.json       what to do; written before the start, so an attempt exists from here on
 *   process.json   pid and identity of the courier
 *   trainer.json   the same of the trainer, written by the courier
 *   outcome.json   written by the courier when the attempt should be tried again
 *   exit.json      how it ended; its absence, with no process alive, means that the launcher's process was killed
 *   courier.log, trainer.log
 *   work/          the trainer's folder: what goes in and what comes out
 */
import { open, readFile, rename, writeFile } from "node:fs/promises";
import { explainSystemError } from "@loraline/runtime";
import { z } from "zod";

export const processRecord = z.object({ pid: z.int(), identity: z.string() });
export const outcomeRecord = z.object({ code: z.string(), message: z.string() });
export type Outcome = z.infer<typeof outcomeRecord>;
export const exitRecord = z.discriminatedUnion("phase", [
  z.object({ phase: z.literal("concluded") }),
  z.object({ phase: z.literal("failed"), code: z.string(), message: z.string(), endedAt: z.number() }),
]);
export type ExitRecord = z.infer<typeof exitRecord>;

/** Whole or not at all. */
export async function writeJson(path: string, value: unknown): Promise<void> {
  const part = `${path}.part`;
  await writeFile(part, JSON.stringify(value));
  await rename(part, path);
}

/** undefined when the file is missing or, being half-written by something that was killed, not what it should be. */
export async function readJson<T extends z.ZodType>(path: string, schema: T): Promise<z.output<T> | undefined> {
  try {
    return schema.safeParse(JSON.parse(await readFile(path, "utf8"))).data;
  } catch (error) {
    if (error instanceof SyntaxError || ["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw explainSystemError(error, `reading ${path}`);
  }
}

/** The last characters of a log; empty when there is none. */
export async function tailOf(path: string, characters = 2000): Promise<string> {
  try {
    await using file = await open(path);
    const { size } = await file.stat();
    const length = Math.min(size, characters);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
    return buffer.toString("utf8", 0, bytesRead).trim();
  } catch {
    return "";
  }
}
