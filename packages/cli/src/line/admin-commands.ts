/** `loraline keys`, `limits` and `usage`: what an admin of a tenant does; and the first key of a tenant, made at NATS. */
import { createdKey, keyList, type keyView, limitList, limitView, type Scope, scopes, usageView } from "@loraline/contracts";
import { type Command, InvalidArgumentError, Option } from "commander";
import { z } from "zod";
import type { LineClient } from "../connect-line.ts";
import { exitCodes, Failure } from "../failure.ts";
import { bold, pairs, table } from "../terminal.ts";

export interface AdminCommandsContext {
  env: Record<string, string | undefined>;
  line: () => Promise<LineClient>;
  /** Prints a value as JSON, or as lines. */
  print: (value: unknown, lines: () => readonly string[]) => void;
}

const scopeList = (text: string): Scope[] => {
  const given = text.split(",").map((word) => word.trim());
  const unknown = given.filter((word) => !(scopes as readonly string[]).includes(word));
  if (unknown.length > 0) throw new InvalidArgumentError(`No such scope: ${unknown.join(", ")}. Give some of ${scopes.join(",")}.`);
  return given as Scope[];
};

/** A time, or so many days from now. */
const expiry = (text: string): string => {
  const days = /^(\d{1,5})d$/.exec(text)?.[1];
  const at = days === undefined ? Date.parse(text) : Date.now() + Number(days) * 24 * 60 * 60_000;
  if (Number.isNaN(at)) throw new InvalidArgumentError("Give a time such as 2027-01-31, or a number of days such as 90d.");
  return new Date(at).toISOString();
};

const amount = (text: string): number => {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1) throw new InvalidArgumentError("Give a whole number from 1.");
  return value;
};

const deleted = z.object({ deleted: z.literal(true) });

export function addAdminCommands(program: Command, { env, line, print }: AdminCommandsContext): void {
  const keys = program.command("keys").description("API keys of the tenant");
  keys
    .command("create")
    .description("make a key; it is shown once")
    .requiredOption("--name <name>", "shown wherever the key did something")
    .option("--scopes <list>", `what it may do, some of ${scopes.join(",")}; default: all`, scopeList)
    .option("--expires <when>", "a time, or days from now such as 90d; default: never", expiry)
    .option("--tenant <name>", "with --nats: whose key; a tenant is there as soon as it has one")
    .addOption(new Option("--nats <url>", "at NATS itself instead of a gateway: for a tenant's first key").env("NATS_URL"))
    .addHelpText(
      "after",
      "\nExamples:\n  loraline keys create --name ci --scopes train,infer --expires 90d\n  loraline keys create --name boss --tenant acme --nats nats://nats:4222\n",
    )
    .action(async (flags: { name: string; scopes?: Scope[]; expires?: string; tenant?: string; nats?: string }) => {
      const { name, expires: expiresAt, tenant, nats } = flags;
      if (tenant !== undefined && nats === undefined) {
        throw new Failure(
          exitCodes.usage,
          "NATS_MISSING",
          "--tenant works at NATS only: give --nats too. A line's own key is of one tenant.",
          { param: "--nats" },
        );
      }
      if (tenant === undefined || nats === undefined) {
        const body = {
          name,
          ...(flags.scopes === undefined ? {} : { scopes: flags.scopes }),
          ...(expiresAt === undefined ? {} : { expires_at: expiresAt }),
        };
        const made = await (await line()).call(createdKey, "POST", "keys", body);
        print(made, () => [...describeKey(made), "", bold(made.key), "Keep it: it is not shown again."]);
        return;
      }
      const { createTenantKey } = await import("@loraline/local");
      const auth = { user: env.NATS_USER, pass: env.NATS_PASS, token: env.NATS_TOKEN };
      const key = await createTenantKey({ natsUrl: nats, ...auth, tenant, name, scopes: flags.scopes, expiresAt });
      print({ tenant, name, key }, () => [`key "${name}" of tenant ${tenant}`, "", bold(key), "Keep it: it is not shown again."]);
    });
  keys
    .command("list")
    .alias("ls")
    .description("list keys, newest first; never the keys themselves")
    .action(async () => {
      const { data } = await (await line()).call(keyList, "GET", "keys");
      print(data, () =>
        table([
          ["ID", "NAME", "SCOPES", "CREATED", "BY", "EXPIRES"],
          ...data.map(({ id, name, scopes: has, createdAt, createdBy, expiresAt }) => [
            id,
            name,
            has.join(","),
            createdAt.slice(0, 10),
            createdBy ?? "-",
            expiresAt ?? "never",
          ]),
        ]),
      );
    });
  keys
    .command("revoke")
    .description("end a key, at once and on every gateway")
    .argument("<id>", "its id in `keys list`")
    .action(async (id: string) => {
      const answer = await (await line()).call(deleted, "DELETE", `keys/${encodeURIComponent(id)}`);
      print(answer, () => [`revoked: ${id}`]);
    });

  const limits = program.command("limits").description("most that the tenant, or one adapter, may use; held by all gateways together");
  limits
    .command("list")
    .alias("ls")
    .description("list limits")
    .action(async () => {
      const { data } = await (await line()).call(limitList, "GET", "limits");
      print(data, () => (data.length === 0 ? ["no limits"] : listLimits(data)));
    });
  limits
    .command("set")
    .description("set the limits of the tenant or of one adapter; what is not given is not limited")
    .argument("[adapter]", "name of the adapter; default: the whole tenant")
    .option("--requests <n>", "requests per minute", amount)
    .option("--tokens <n>", "tokens per minute, prompt and answer", amount)
    .option("--concurrency <n>", "requests in flight at once", amount)
    .action(async (adapter: string | undefined, flags: { requests?: number; tokens?: number; concurrency?: number }) => {
      const body = {
        requests_per_minute: flags.requests ?? null,
        tokens_per_minute: flags.tokens ?? null,
        concurrency: flags.concurrency ?? null,
      };
      const view = await (await line()).call(limitView, "PUT", limitPath(adapter), body);
      print(view, () => listLimits([view]));
    });
  limits
    .command("remove")
    .alias("rm")
    .description("lift the limits of the tenant or of one adapter")
    .argument("[adapter]", "name of the adapter; default: the whole tenant")
    .action(async (adapter: string | undefined) => {
      const answer = await (await line()).call(deleted, "DELETE", limitPath(adapter));
      print(answer, () => [`no limit any more: ${adapter ?? "the tenant"}`]);
    });

  program
    .command("usage")
    .description("tokens used, by day and model")
    .option("--from <day>", "first day, such as 2026-11-01; default: 30 days back")
    .option("--to <day>", "last day; default: today (UTC)")
    .action(async (flags: { from?: string; to?: string }) => {
      const query = new URLSearchParams(Object.entries(flags).filter((entry): entry is [string, string] => typeof entry[1] === "string"));
      const usage = await (await line()).call(usageView, "GET", `usage?${query.toString()}`);
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
}

const limitPath = (adapter: string | undefined): string => (adapter === undefined ? "limits" : `limits/${encodeURIComponent(adapter)}`);

const describeKey = ({ id, name, scopes: has, expiresAt }: z.output<typeof keyView>): string[] =>
  pairs([
    ["id", id],
    ["name", name],
    ["scopes", has.join(",")],
    ["expires", expiresAt ?? "never"],
  ]);

function listLimits(rows: readonly z.output<typeof limitView>[]): string[] {
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
