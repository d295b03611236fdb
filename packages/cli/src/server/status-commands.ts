/** `loraline status`, `stop` and `logs`: the server on this machine. */
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { createApiClient } from "@loraline/client";
import { version } from "@loraline/contracts";
import { findLine, readChildren, readOwner, stopLine } from "@loraline/local/state";
import { type AddCommands, examples, wholeNumber } from "../command.ts";
import { exitCodes, Failure, failureOf } from "../failure.ts";
import { duration, green, pairs, shortPath, writeLine, yellow } from "../terminal.ts";
import { followLog, lineOfLog, tailOf } from "./read-log.ts";

export const addStatusCommands: AddCommands = (program, { globals, print, terminal, exitWith }) => {
  program
    .command("status")
    .description("show the server on this machine: its bases, what runs, where its state is")
    .addHelpText("after", examples("loraline status", "loraline status --json"))
    .action(async () => {
      const stateDir = resolve(globals().state);
      const line = await findLine(stateDir);
      if (line === undefined) {
        const owner = await readOwner(stateDir);
        exitWith(exitCodes.unreachable);
        const is = owner === undefined ? "stopped" : "starting";
        return print({ state: is, stateDir, pid: owner?.pid ?? null }, () => [
          owner === undefined
            ? `no server runs on ${shortPath(stateDir)}; start one with \`loraline up\``
            : yellow(
                `pid ${owner.pid} has ${shortPath(stateDir)} and does not answer yet: it is starting or stopping, or a command works on it`,
              ),
        ]);
      }
      const { apiKey, url, pid, engines, tenant, startedAt, version: runs } = line;
      const children = await readChildren(stateDir);
      const api = createApiClient({ url, apiKey: apiKey ?? "" });
      const asked = await Promise.all([api.listEngines(), api.listRuns({ query: { limit: 1000 } })]).catch(
        (error: unknown) => failureOf(error).message,
      );
      const said =
        typeof asked === "string"
          ? undefined
          : { engines: asked[0].data, runs: asked[1].data.filter(({ finishedAt }) => finishedAt === null) };
      const problem = typeof asked === "string" ? asked : null;
      const isReady = (engine: string): boolean =>
        said?.engines.find((known) => known.engine === engine)?.replicas.some(({ ready }) => ready) ?? false;
      const bases = engines.map(({ engine, base }) => ({ base, engine, ready: isReady(engine) }));
      const state = {
        state: "running",
        stateDir,
        pid,
        url,
        natsUrl: line.natsUrl,
        tenant,
        version: runs ?? null,
        startedAt: startedAt ?? null,
      };
      const runsNow = said?.runs.map(({ runId, phase }) => ({ runId, phase })) ?? [];
      print({ ...state, bases, children, runs: runsNow, problem }, () =>
        pairs([
          ["server", `${said === undefined ? yellow(`does not answer: ${problem}`) : green("running")}, pid ${pid}`],
          startedAt === undefined
            ? undefined
            : ["since", `${duration(Date.now() - Date.parse(startedAt))} (${startedAt.slice(0, 19).replace("T", " ")} UTC)`],
          ["URL", url],
          ["NATS", line.natsUrl],
          ["tenant", tenant],
          runs === undefined || runs === version
            ? undefined
            : ["version", yellow(`${runs}; this program is ${version}: stop and start it`)],
          ...bases.map(({ base, ready }, index): [string, string] => [
            index === 0 ? "bases" : "",
            `${base}  ${ready ? green("answers") : yellow("its engine does not answer yet")}`,
          ]),
          ["runs", runsNow.length === 0 ? "none under way" : runsNow.map(({ runId, phase }) => `${runId} ${phase}`).join(", ")],
          ["state", shortPath(stateDir)],
        ]),
      );
    });

  program
    .command("stop")
    .description("stop the server on this machine; running trainings save a checkpoint and go on at the next start")
    .option("--now", "do not wait for an orderly end; nothing stored is lost", false)
    .action(async ({ now }: { now: boolean }) => {
      const stateDir = resolve(globals().state);
      const pid = await stopLine(stateDir, { now });
      print({ stopped: pid ?? null }, () => [pid === undefined ? `no server runs on ${shortPath(stateDir)}` : `stopped (pid ${pid})`]);
    });

  program
    .command("logs")
    .description("show a log of the server on this machine")
    .argument("[part]", "line (everything that is ours), nats, or engine; `logs --parts` lists them", "line")
    .option("--parts", "list the parts", false)
    .option("-f, --follow", "go on until Ctrl-C", false)
    .option("-n, --lines <n>", "so many last lines", wholeNumber(0, 1_000_000), 50)
    .addHelpText("after", examples("loraline logs", "loraline logs engine --follow", "loraline logs line -n 500 --json"))
    .action(async (part: string, { parts, follow, lines }: { parts: boolean; follow: boolean; lines: number }) => {
      const { state, json } = globals();
      const dir = join(resolve(state), "logs");
      const there = (await readdir(dir).catch((): string[] => [])).filter((name) => name.endsWith(".log")).map((name) => name.slice(0, -4));
      if (parts) return print(there, () => there);
      // `engine` is enough where there is one, whatever its base.
      const like = there.filter((name) => name.startsWith(part));
      const named = there.includes(part) || like.length !== 1 ? part : (like[0] as string);
      if (!there.includes(named)) {
        const known = there.length === 0 ? "no server ever ran on this state directory" : `there are ${there.join(", ")}`;
        throw new Failure(exitCodes.notFound, "LOG_MISSING", `there is no log "${part}": ${known}.`, { param: "part" });
      }
      const file = join(dir, `${named}.log`);
      const show = (text: string): void => writeLine(terminal.out, json ? text : lineOfLog(text));
      const { shown, end } = await tailOf(file, lines);
      for (const text of shown) show(text);
      if (follow) for await (const text of followLog(file, end, terminal.signal)) show(text);
    });
};
