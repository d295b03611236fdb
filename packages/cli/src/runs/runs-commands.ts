/** `loraline runs`, `show`, `cancel`, `pause`, `resume` and `trace`: runs that there are. */
import { type RunPhase, runPhases } from "@loraline/contracts";
import { Option } from "commander";
import { type AddCommands, examples, ownName, wholeNumber } from "../command.ts";
import { findRun } from "./find-run.ts";
import { describeRun, listRuns } from "./show-run.ts";
import { follow, showRun } from "./start-run.ts";
import { waterfall } from "./waterfall.ts";

interface RunsFlags {
  phase?: RunPhase;
  adapter?: string;
  base?: string;
  data?: string;
  limit: number;
  after?: string;
}

export const addRunsCommands: AddCommands = (program, { connect, globals, print, terminal, exitWith }) => {
  program
    .command("runs")
    .description("list runs, newest first, with settings and result")
    .addOption(new Option("--phase <phase>", "only runs in this phase").choices(runPhases))
    .option("--adapter <name>", "only runs for this adapter", ownName)
    .option("--base <name>", "only runs on this base")
    .option("--data <id>", "only runs on this dataset")
    .option("--limit <n>", "so many at once", wholeNumber(1, 1000), 20)
    .option("--after <run>", "the page after this run")
    .addHelpText("after", examples("loraline runs --phase failed", "loraline runs --adapter pirate --limit 50"))
    .action(async ({ data: dataset, ...asked }: RunsFlags) => {
      const query = { ...asked, ...(dataset === undefined ? {} : { dataset }) };
      const { data: runs, has_more: hasMore } = await (await connect()).listRuns({ query });
      const filtered = [asked.phase, asked.adapter, asked.base, dataset, asked.after].some((one) => one !== undefined);
      print(runs, () => [
        ...(runs.length === 0 ? [filtered ? "no such runs" : "no runs yet"] : listRuns(runs)),
        ...(hasMore ? [`older ones: --after ${runs.at(-1)?.runId ?? ""}`] : []),
      ]);
    });

  program
    .command("show")
    .description("show a run: proof, version, tokens, evaluation")
    .argument("<run>", "id of the run, its unique beginning or end, or `last`")
    .option("--follow", "until it is over", false)
    .addHelpText("after", examples("loraline show last", "loraline show 01J9… --follow"))
    .action(async (id: string, flags: { follow: boolean }) => {
      const api = await connect();
      const run = await findRun(api, id);
      if (flags.follow) exitWith(await follow(api, run.runId, globals(), terminal));
      else await showRun(api, run, globals(), terminal);
    });

  program
    .command("cancel")
    .description("stop a run")
    .argument("<run>", "id of the run, or `last`")
    .addHelpText("after", examples("loraline cancel last"))
    .action(async (id: string) => {
      const api = await connect();
      const { runId } = await findRun(api, id);
      await api.cancelFineTuningJob({ fine_tuning_job_id: `ftjob-${runId}` });
      const run = await api.getRun({ run_id: runId });
      print(run, () => describeRun(run, undefined));
    });

  for (const [verb, description, hint] of [
    ["pause", "stop a run until it is resumed, and give its device back", "loraline resume"],
    ["resume", "let a paused run go on from its newest checkpoint", "loraline show --follow"],
  ] as const) {
    program
      .command(verb)
      .description(description)
      .argument("<run>", "id of the run, or `last`")
      .addHelpText("after", examples(`loraline ${verb} last`, `${hint} last`))
      .action(async (id: string) => {
        const api = await connect();
        const { runId } = await findRun(api, id);
        const params = { fine_tuning_job_id: `ftjob-${runId}` };
        await (verb === "pause" ? api.pauseFineTuningJob(params) : api.resumeFineTuningJob(params));
        const run = await api.getRun({ run_id: runId });
        print(run, () => describeRun(run, undefined));
      });
  }

  program
    .command("trace")
    .description("show where a run's time went")
    .argument("<run>", "id of the run, or `last`")
    .addHelpText("after", examples("loraline trace last"))
    .action(async (id: string) => {
      const api = await connect();
      const { runId } = await findRun(api, id);
      const trace = await api.getTrace({ run_id: runId });
      print(trace, () => [`trace ${trace.traceId}`, ...waterfall(trace.spans, terminal.columns)]);
    });
};
