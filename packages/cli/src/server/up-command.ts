/** `loraline up` */
import { resolve } from "node:path";
import { Option } from "commander";
import { type AddCommands, examples, wholeNumber } from "../command.ts";
import { type StartFlags, startOptionsOf, withStartOptions } from "./start-options.ts";

export const addUpCommand: AddCommands = (program, tools) => {
  const command = program
    .command("up")
    .description("run the whole server on this machine, in the foreground")
    .addHelpText(
      "after",
      examples(
        "loraline up --port 9000",
        "loraline up --state /data/loraline",
        "loraline up --base smollm2-135m-instruct --base qwen2.5-0.5b-instruct --max-lora-rank 64",
        "loraline up --config loraline.yaml",
        "",
        "loraline.yaml, with the names of the chart's values:",
        "  engineDefaults: { maxLoraRank: 64 }",
        "  engines:",
        "    - { base: smollm2-135m-instruct, maxModelLen: 4096 }",
        "    - { base: qwen2.5-0.5b-instruct, toolCallParser: hermes }",
      ),
    );
  withStartOptions(command, tools)
    .addOption(new Option("--host <address>", "address to listen on").env("LORALINE_HOST").default("127.0.0.1"))
    .addOption(
      new Option("--port <n>", "port to listen on; 0: any free one").env("LORALINE_PORT").default(8420).argParser(wholeNumber(0, 65_535)),
    )
    .addOption(
      new Option("--metrics-port <n>", "port of this machine alone where Prometheus finds /metrics (default: nowhere)")
        .env("LORALINE_METRICS_PORT")
        .argParser(wholeNumber(0, 65_535)),
    )
    .action(async ({ host, port, metricsPort, ...flags }: StartFlags & { host: string; port: number; metricsPort?: number }) => {
      const { state, json } = tools.globals();
      // Loaded only now, since the services and their libraries take long to load.
      const { runUp } = await import("./up.ts");
      const options = { ...(await startOptionsOf(flags, tools)), stateDir: resolve(state), host, port, metricsPort, json };
      tools.exitWith(await runUp(options, tools.terminal));
    });
};
