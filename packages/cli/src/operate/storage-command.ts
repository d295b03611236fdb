/** `loraline storage`: what takes the room in the object store. */
import { storageGroups } from "@loraline/contracts";
import { Option } from "commander";
import { type AddCommands, examples } from "../command.ts";
import { byteWords, table } from "../terminal.ts";

export const addStorageCommand: AddCommands = (program, { connect, print, env }) => {
  program
    .command("storage")
    .description("what the tenant has in the object store, beside its quota")
    .addOption(new Option("--nats <url>", "of all tenants, at NATS itself: for whoever runs the server"))
    .addHelpText("after", examples("loraline storage", "loraline storage --nats nats://nats:4222"))
    .action(async ({ nats }: { nats?: string }) => {
      if (nats === undefined) {
        const { bytes, quota, groups } = await (await connect()).getStorage();
        const all = { bytes, quota, groups };
        const rows = groups.map((each) => [each.group, byteWords(each.bytes)]);
        const limit = quota === null ? "no quota" : `${Math.round((bytes / Math.max(1, quota)) * 100)} % of ${byteWords(quota)}`;
        return print(all, () => table([["WHAT", "SIZE"], ...rows, ["all", `${byteWords(bytes)}, ${limit}`]]));
      }
      const { natsAuthOf, storageOfTenants } = await import("@loraline/local");
      const tenants = await storageOfTenants({ natsUrl: nats, auth: natsAuthOf(env) });
      const rows = tenants.map((each) => [
        each.tenant,
        byteWords(each.bytes),
        ...storageGroups.map((group) => byteWords(each.groups[group] ?? 0)),
      ]);
      print(tenants, () => table([["TENANT", "ALL", ...storageGroups.map((group) => group.toUpperCase())], ...rows]));
    });
};
