/** `loraline runs`, `show`, `cancel` and `trace`: runs that there are. */
import { type AddCommands, examples } from "../command.ts";
import { findRun, newestFirst } from "./find-run.ts";
import { describeRun, listRuns } from "./show-run.ts";
import { follow, showRun } from "./start-run.ts";
import { waterfall } from "./waterfall.ts";

export const addRunsCommands: AddCommands = (program, { connect, globals, print, terminal, exitWith }) => {
  program
    .command("runs")
    .description("list runs, newest first")
    .action(async () => {
      const runs = newestFirst((await (await connect()).listRuns()).data);
      print(runs, () => (runs.length === 0 ? ["no runs yet"] : listRuns(runs)));
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
