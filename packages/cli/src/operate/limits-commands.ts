/** `loraline limits`: most that the tenant, or one of its adapters, may use. */
import type { Answer, ApiClient } from "@loraline/client";
import { priorityRange, type QuotaName, quotaNames, quotaTable } from "@loraline/contracts";
import { Option } from "commander";
import { type AddCommands, byteSize, orNone, wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { byteWords, type Line, table } from "../terminal.ts";

type Limit = number | null;
type Flag = number | "none";
/** Rates, which an adapter may have, too. */
interface RateFlags {
  requests?: Flag;
  tokens?: Flag;
  concurrency?: Flag;
}

const inBytes: ReadonlySet<QuotaName> = new Set(["storageBytes", "uploadBytesPerMinute", "historyBytes"]);
/** `storage_bytes` is `--storage-bytes`. */
const flagOf = (name: QuotaName): string => `--${quotaTable[name].field.replaceAll("_", "-")}`;
const valueOf = (name: QuotaName) =>
  inBytes.has(name) ? byteSize : name === "highestPriority" ? wholeNumber(priorityRange.min, priorityRange.max) : wholeNumber(0);

export const addLimitsCommands: AddCommands = (program, { connect, print }) => {
  const limits = program
    .command("limits")
    .description("most that the tenant, or one adapter, may use and have; held by all services together");
  limits
    .command("list")
    .alias("ls")
    .description("list limits, and quotas with what is used of them")
    .action(async () => {
      const { data, quotas } = await (await connect()).listLimits();
      print({ data, quotas }, () => [
        ...(data.length === 0 ? ["no limits on requests"] : listLimits(data)),
        "",
        ...table([
          ["QUOTA", "MOST", "USED", "GRANTED"],
          ...quotas.map(({ quota, limit, used, granted }) => [
            flagOf(quota).slice(2),
            shownQuota(quota, limit),
            used === null ? "-" : shownQuota(quota, used),
            shownQuota(quota, granted),
          ]),
        ]),
      ]);
    });

  const set = limits
    .command("set")
    .description("set limits of the tenant or of one adapter; the others stay; `none` lifts one")
    .argument("[adapter]", "name of the adapter; default: the whole tenant")
    .option("--requests <n>", "requests per minute", orNone(wholeNumber(1)))
    .option("--tokens <n>", "tokens per minute, prompt and answer", orNone(wholeNumber(1)))
    .option("--concurrency <n>", "requests in flight at once", orNone(wholeNumber(1)));
  for (const name of quotaNames) {
    const words = `${quotaTable[name].description.replace(/\.$/, "")}; of the whole tenant`;
    set.addOption(new Option(`${flagOf(name)} <n>`, words).argParser(orNone(valueOf(name))));
  }
  set.action(async (adapter: string | undefined, flags: RateFlags & Partial<Record<QuotaName, Flag>>) => {
    if (Object.keys(flags).length === 0) {
      const message = "say what to limit: --requests, --tokens, --concurrency, … (`loraline limits set --help`).";
      throw new Failure(exitCodes.usage, "LIMIT_MISSING", message);
    }
    const api = await connect();
    const current = await limitOf(api, adapter);
    const rates = {
      requests_per_minute: given(flags.requests, current?.requestsPerMinute),
      tokens_per_minute: given(flags.tokens, current?.tokensPerMinute),
      concurrency: given(flags.concurrency, current?.concurrency),
    };
    const quotas = Object.fromEntries(
      quotaNames.flatMap((name) => {
        const value = given(flags[name], adapter === undefined ? current?.[name] : null);
        return value === null ? [] : [[quotaTable[name].field, value]];
      }),
    );
    const body = { ...rates, ...quotas };
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

const given = (flag: Flag | undefined, current: Limit | undefined): Limit => (flag === "none" ? null : (flag ?? current ?? null));

async function limitOf(api: ApiClient, adapter: string | undefined): Promise<Answer<"setTenantLimit"> | undefined> {
  const { data } = await api.listLimits();
  return data.find((limit) => limit.adapter === (adapter?.replace(/^[^/]*\//, "") ?? null));
}

function shownQuota(name: QuotaName, value: number | null): string {
  if (value === null) return "no limit";
  if (!inBytes.has(name)) return String(value);
  return byteWords(value);
}

function listLimits(rows: readonly Answer<"setTenantLimit">[]): Line[] {
  const shown = (value: Limit | undefined): string => (typeof value === "number" ? String(value) : "-");
  return table([
    ["OF", "REQUESTS/MIN", "TOKENS/MIN", "AT ONCE", "SET BY", "QUOTAS"],
    ...rows.map((row) => [
      row.adapter ?? "tenant",
      shown(row.requestsPerMinute),
      shown(row.tokensPerMinute),
      shown(row.concurrency),
      row.fixed === true ? "operator" : (row.by ?? "-"),
      quotaNames
        .flatMap((name) => (typeof row[name] === "number" ? [`${flagOf(name).slice(2)} ${shownQuota(name, row[name])}`] : []))
        .join(", ") || "-",
    ]),
  ]);
}
