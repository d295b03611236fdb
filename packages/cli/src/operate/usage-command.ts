/** `loraline usage` */
import type { AddCommands } from "../command.ts";
import { table } from "../terminal.ts";

export const addUsageCommand: AddCommands = (program, { connect, print }) => {
  program
    .command("usage")
    .description("tokens used, by day and model")
    .option("--from <day>", "first day, such as 2026-11-01; default: 30 days back")
    .option("--to <day>", "last day; default: today (UTC)")
    .action(async (query: { from?: string; to?: string }) => {
      const usage = await (await connect()).getUsage({ query });
      print(usage, () =>
        usage.data.length === 0
          ? [`nothing was used from ${usage.from} to ${usage.to}`]
          : table([
              ["DAY", "MODEL", "REQUESTS", "FAILED", "PROMPT", "COMPLETION", "ESTIMATED"],
              ...usage.data.map((row) => [
                row.day,
                row.model,
                ...[row.requests, row.failed, row.promptTokens, row.completionTokens, row.estimated].map(String),
              ]),
            ]),
      );
    });
};
