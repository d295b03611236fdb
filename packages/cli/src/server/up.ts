/** `loraline up`: the server in the foreground, until Ctrl-C. */
import { join } from "node:path";
import { type LineNews, type LineOptions, startLine } from "@loraline/local";
import { createApiClient } from "@loraline/client";
import { exitCodes } from "../failure.ts";
import { consoleAddress } from "./console-command.ts";
import { bold, cyan, dim, duration, green, pairs, shortPath, type Terminal, writeLine, writeLines, yellow } from "../terminal.ts";

/** @returns the exit code. */
export async function runUp(options: Omit<LineOptions, "onNews"> & { json: boolean }, terminal: Terminal): Promise<number> {
  const { json, ...lineOptions } = options;
  const say = (news: LineNews): void => {
    if (json) writeLine(terminal.out, JSON.stringify({ time: new Date().toISOString(), ...news }));
    else if (news.kind !== "up") writeLine(terminal.out, newsLine(news));
  };
  if (!json) writeLine(terminal.out, dim(`starting; everything is kept in ${shortPath(options.stateDir)}`));
  const server = await startLine({ ...lineOptions, onNews: say });
  if (!json) {
    const [base, ...others] = server.bases;
    const example = `loraline run samples/persona.jsonl${others.length === 0 ? "" : ` --base ${base}`} --name persona`;
    const natsAt = `${server.natsUrl} ${dim(`(user tenant.${server.tenant}, password in ${shortPath(join(options.stateDir, "nats-auth"))})`)}`;
    const rows = pairs([
      ["URL", bold(server.url)],
      [
        "console",
        `${await consoleAddress(createApiClient(server))} ${dim("(signs in once, within 15 minutes; another: loraline console)")}`,
      ],
      ["API key", server.apiKey],
      ["NATS", natsAt],
      [
        others.length === 0 ? "base" : "bases",
        `${server.bases.join(", ")} ${dim(`(${others.length === 0 ? "its engine is" : "their engines are"} starting; trainings can begin already)`)}`,
      ],
      ["try", cyan(example)],
      ["end", "Ctrl-C"],
    ]);
    writeLines(terminal, rows);
  }
  await new Promise<void>((resolve) => {
    if (terminal.signal.aborted) resolve();
    terminal.signal.addEventListener("abort", () => resolve(), { once: true });
  });
  if (!json) writeLine(terminal.out, dim("stopping; running trainings save a checkpoint and go on at the next start"));
  await server[Symbol.asyncDispose]();
  return exitCodes.ok;
}

export function newsLine(news: Exclude<LineNews, { kind: "up" }>): string {
  switch (news.kind) {
    case "leftovers-killed":
      return yellow(`ended what an earlier server left running: ${news.names.join(", ")}`);
    case "engine-ready":
      return green(`the engine of ${news.base} answers (${duration(news.afterMs)} after its start)`);
    case "disk-full":
      return yellow(
        `the disk is full: nothing can be stored in ${shortPath(news.stateDir)}. Free space; the server then goes on by itself.`,
      );
    case "nats-slow":
      return yellow(
        `nats-server is still reading what it holds, as it must after a kill or a power cut; that may take minutes. Log: ${shortPath(news.logFile)}`,
      );
    case "child-ended":
      return yellow(
        `${news.name === "engine" ? `the engine of ${news.base}` : news.name} ended (${news.why}); started again in ${duration(news.restartInMs)}. Log: ${shortPath(news.logFile)}`,
      );
  }
}
