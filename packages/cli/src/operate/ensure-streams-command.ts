/** `loraline ensure-streams` */
import { Option } from "commander";
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
    .addHelpText("after", examples("loraline ensure-streams --nats nats://nats:4222 --replicas 3"))
    .action(async ({ nats, replicas, auditDays }: { nats: string; replicas: number; auditDays?: number }) => {
      const { applyStreams } = await import("@loraline/local");
      await applyStreams({ natsUrl: nats, replicas, auditDays, env });
      print({ nats, replicas }, () => [`streams, consumers, buckets and the object store are in place on ${nats}`]);
    });
};
