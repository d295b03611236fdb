/** `loraline ensure-streams` */
import { type StreamLimits, streamLimits, tenantName } from "@loraline/contracts";
import { InvalidArgumentError, Option } from "commander";
import { type AddCommands, examples, wholeNumber } from "../command.ts";

export const addEnsureStreamsCommand: AddCommands = (program, { env, print }) => {
  program
    .command("ensure-streams")
    .description("create or update streams, consumers, buckets and the object store on a NATS of your own; never deletes")
    .addOption(new Option("--nats <url>", "address of NATS").env("NATS_URL").makeOptionMandatory())
    .addOption(new Option("--replicas <n>", "copies of each stream").env("NATS_REPLICAS").argParser(wholeNumber(1)).default(1))
    .addOption(
      new Option("--audit-days <n>", "how long entries of the audit log are kept; default: 400 days")
        .env("AUDIT_DAYS")
        .argParser(wholeNumber(1)),
    )
    .addOption(
      new Option(
        "--limits <json>",
        'most bytes of streams and buckets, such as {"RUNS": 2147483648, "KV_runs": 1073741824}; default: as large as the disk',
      )
        .env("STREAM_LIMITS")
        .argParser(limitsOf),
    )
    .addOption(
      new Option("--tenants <names>", "tenants whose own clients use NATS, separated by commas; default: none")
        .env("NATS_TENANTS")
        .argParser(namesOf),
    )
    .addHelpText("after", examples("loraline ensure-streams --nats nats://nats:4222 --replicas 3"))
    .action(
      async ({ nats, ...options }: { nats: string; replicas: number; auditDays?: number; limits?: StreamLimits; tenants?: string[] }) => {
        const { applyStreams } = await import("@loraline/local");
        await applyStreams({ natsUrl: nats, ...options, env });
        print({ nats, replicas: options.replicas }, () => [`streams, consumers, buckets and the object store are in place on ${nats}`]);
      },
    );
};

function namesOf(text: string): string[] {
  const names = text.split(",").filter((name) => name !== "");
  for (const name of names) {
    const { error } = tenantName.safeParse(name);
    if (error !== undefined) throw new InvalidArgumentError(`"${name}" is no tenant's name: ${error.issues[0]?.message}.`);
  }
  return names;
}

function limitsOf(text: string): StreamLimits {
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new InvalidArgumentError(`It is not JSON: ${(error as Error).message}.`);
  }
  const parsed = streamLimits.safeParse(given);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError(parsed.error.issues.map(({ path, message }) => [...path, message].join(": ")).join("; "));
}
