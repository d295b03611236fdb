/** `loraline version` */
import { version } from "@loraline/contracts";
import type { AddCommands } from "../command.ts";
import { failureOf } from "../failure.ts";

export const addVersionCommand: AddCommands = (program, { connect, print }) => {
  program
    .command("version")
    .description("print the versions of this program and of the server")
    .action(async () => {
      const server = await connect().then(
        async (api) => {
          const { version: told } = await api.getHealth();
          return { url: api.url, version: told };
        },
        (error: unknown) => ({ error: failureOf(error).message }),
      );
      print({ cli: version, server }, () => [
        `loraline ${version}`,
        "error" in server ? `server: ${server.error}` : `server ${server.version} at ${server.url}`,
      ]);
    });
};
