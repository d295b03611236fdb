/** `loraline audit`: who did what. */
import { type AuditAction, type AuditEntry, auditActions } from "@loraline/contracts";
import { Option } from "commander";
import { type AddCommands, examples, wholeNumber } from "../command.ts";
import { type Line, table } from "../terminal.ts";

interface Flags {
  action?: AuditAction;
  target?: string;
  by?: string;
  limit: number;
  before?: number;
  nats?: string;
}

export const addAuditCommand: AddCommands = (program, { connect, print, env }) => {
  program
    .command("audit")
    .description("who did what, newest first: keys, limits, promotions, rollbacks, deletions, cancellations, redriven and deleted messages")
    .addOption(new Option("--action <action>", "only this action").choices([...auditActions]))
    .option("--target <id>", "only what was done to this: an adapter, a key's id, a run, a dataset")
    .option("--by <who>", "only of this one: a key's id or name, a token's subject, a NATS user, a resource")
    .option("--limit <n>", "most entries", wholeNumber(1), 50)
    .option("--before <seq>", "only older ones than this number of the first column", wholeNumber(1))
    .option("--nats <url>", "at NATS itself instead of a gateway: entries of every tenant, for whoever runs the installation")
    .addHelpText("after", examples("loraline audit --action adapter.promote --target pirate", "loraline audit --nats nats://nats:4222"))
    .action(async ({ nats, ...query }: Flags) => {
      const readAtNats = async (natsUrl: string) => {
        const { natsAuthOf, readAudit } = await import("@loraline/local");
        return readAudit({ natsUrl, auth: natsAuthOf(env), ...query });
      };
      const answer = nats === undefined ? await (await connect()).listAudit({ query }) : await readAtNats(nats);
      print(answer, () => (answer.data.length === 0 ? ["nothing found"] : listAudit(answer.data)));
    });
};

function listAudit(rows: readonly (AuditEntry & { seq: number; time: string })[]): Line[] {
  return table([
    ["SEQ", "TIME", "TENANT", "BY", "ACTION", "TARGET", "OUTCOME", "DETAILS"],
    ...rows.map(({ seq, time, tenant, by, action, target, outcome, code, details }) => [
      String(seq),
      time.slice(0, 19).replace("T", " "),
      tenant,
      by.name ? `${by.kind} ${by.name} (${by.id})` : `${by.kind} ${by.id}`,
      action,
      target,
      code ? `${outcome}: ${code}` : outcome,
      detailsOf(details),
    ]),
  ]);
}

const detailsOf = (details: Readonly<Record<string, unknown>>): string =>
  Object.entries(details)
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(" ") || "-";
