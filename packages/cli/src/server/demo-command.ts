/** `loraline demo` */
import { join } from "node:path";
import { type AddCommands, examples } from "../command.ts";
import { type StartFlags, startOptionsOf, withStartOptions } from "./start-options.ts";

export const addDemoCommand: AddCommands = (program, tools) => {
  const command = program
    .command("demo")
    .description("train the sample persona and check every claim; its state is made anew each time")
    .option("--preferences", "instead: what pairs of answers teach, beside the base and a supervised run")
    .addHelpText("after", examples("loraline demo --json", "loraline demo --preferences"));
  withStartOptions(command, tools).action(async (flags: StartFlags & { preferences?: true }) => {
    const demoDir = join(tools.root, ".loraline/demo");
    const options = {
      ...(await startOptionsOf(flags, tools)),
      stateDir: join(demoDir, "state"),
      demoDir,
      sample: join(tools.root, "samples/persona.jsonl"),
      host: "127.0.0.1",
      port: 0,
      json: tools.globals().json,
    };
    if (flags.preferences) {
      const { runPreferenceDemo } = await import("./demo-preferences.ts");
      tools.exitWith(await runPreferenceDemo({ ...options, sample: join(tools.root, "samples/preferences.jsonl") }, tools.terminal));
      return;
    }
    // Loaded only now, since the services and their libraries take long to load.
    const { runDemo } = await import("./demo.ts");
    tools.exitWith(await runDemo(options, tools.terminal));
  });
};
