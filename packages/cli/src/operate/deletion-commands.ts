/** `loraline deletions`, and `tenants delete`. */
import type { Stays } from "@loraline/contracts";
import type { AddCommands } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { table } from "../terminal.ts";

/** Lines about something that was deleted, for every command that does so. */
export const whatStays = (id: string, stays: readonly Stays[]): string[] => [
  `deleted: ${id}; \`loraline deletions\` shows when nothing is left of it`,
  ...stays.map(({ what, why }) => `stays: ${what}: ${why}`),
];

export const addDeletionCommands: AddCommands = (program, { connect, print }) => {
  program
    .command("deletions")
    .description("what was deleted in the last 90 days, and what it waits for")
    .action(async () => {
      const { data } = await (await connect()).listDeletions();
      print(data, () =>
        data.length === 0
          ? ["nothing was deleted"]
          : table([
              ["WHAT", "ID", "BY", "ASKED", "GONE SINCE"],
              ...data.map(({ what, id, by, at, doneAt, waiting }) => [
                what,
                id,
                by ?? "-",
                at.slice(0, 19),
                doneAt?.slice(0, 19) ?? (waiting === null ? "about to begin" : `waits for ${waiting}`),
              ]),
            ]),
      );
    });

  const tenants = program.command("tenants").description("the tenant of the key");
  tenants
    .command("delete")
    .description("delete the tenant for good: its keys at once, then everything that it has")
    .argument("<tenant>", "its name")
    .option("--yes", "without this nothing is deleted", false)
    .action(async (tenant: string, { yes }: { yes: boolean }) => {
      if (!yes) {
        const message = `this deletes all datasets, adapters, runs and keys of ${tenant}, for good. Say --yes to do it.`;
        throw new Failure(exitCodes.usage, "NOT_CONFIRMED", message);
      }
      const answer = await (await connect()).deleteTenant({ tenant });
      print(answer, () => [`deleted: ${answer.id}`, ...answer.stays.map(({ what, why }) => `stays: ${what}: ${why}`)]);
    });
};
