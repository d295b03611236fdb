/** `loraline limits`: most that the tenant, or one of its adapters, may use. */
import type { Answer } from "@loraline/client";
import { type AddCommands, wholeNumber } from "../command.ts";
import { table } from "../terminal.ts";

export const addLimitsCommands: AddCommands = (program, { connect, print }) => {
  const limits = program.command("limits").description("most that the tenant, or one adapter, may use; held by all gateways together");
  limits
    .command("list")
    .alias("ls")
    .description("list limits")
    .action(async () => {
      const { data } = await (await connect()).listLimits();
      print(data, () => (data.length === 0 ? ["no limits"] : listLimits(data)));
    });

  limits
    .command("set")
    .description("set the limits of the tenant or of one adapter; what is not given is not limited")
    .argument("[adapter]", "name of the adapter; default: the whole tenant")
    .option("--requests <n>", "requests per minute", wholeNumber(1))
    .option("--tokens <n>", "tokens per minute, prompt and answer", wholeNumber(1))
    .option("--concurrency <n>", "requests in flight at once", wholeNumber(1))
    .action(async (adapter: string | undefined, flags: { requests?: number; tokens?: number; concurrency?: number }) => {
      const body = {
        requests_per_minute: flags.requests ?? null,
        tokens_per_minute: flags.tokens ?? null,
        concurrency: flags.concurrency ?? null,
      };
      const api = await connect();
      const view = await (adapter === undefined ? api.setTenantLimit({ body }) : api.setAdapterLimit({ adapter, body }));
      print(view, () => listLimits([view]));
    });

  limits
    .command("remove")
    .alias("rm")
    .description("lift the limits of the tenant or of one adapter")
    .argument("[adapter]", "name of the adapter; default: the whole tenant")
    .action(async (adapter: string | undefined) => {
      const api = await connect();
      const answer = await (adapter === undefined ? api.deleteTenantLimit() : api.deleteAdapterLimit({ adapter }));
      print(answer, () => [`no limit any more: ${adapter ?? "the tenant"}`]);
    });
};

function listLimits(rows: readonly Answer<"setTenantLimit">[]): string[] {
  const shown = (value: number | null | undefined): string => (typeof value === "number" ? String(value) : "-");
  return table([
    ["OF", "REQUESTS/MIN", "TOKENS/MIN", "AT ONCE", "SET BY"],
    ...rows.map((row) => [
      row.adapter ?? "tenant",
      shown(row.requestsPerMinute),
      shown(row.tokensPerMinute),
      shown(row.concurrency),
      row.fixed === true ? "operator" : (row.by ?? "-"),
    ]),
  ]);
}
