/** `loraline console`: a link that opens the console signed in. */
import type { ApiClient } from "@loraline/client";
import { type AddCommands, examples } from "../command.ts";
import { bold, dim } from "../terminal.ts";

/**
 * The console's address with a link to sign in once. What follows `#` is not sent to servers when it is opened, so it is in no log and in no
 * `Referer`; and whoever finds it later finds it used.
 */
export const consoleAddress = async (api: ApiClient): Promise<string> => addressOf(api.url, (await api.createSignInLink()).link);

const addressOf = (url: string, link: string): string => `${url}/console/#link=${link}`;

export const addConsoleCommand: AddCommands = (program, { connect, print }) => {
  program
    .command("console")
    .description("make a link that opens the console signed in, once")
    .addHelpText("after", examples("loraline console", "loraline console --url https://loraline.example.com"))
    .action(async () => {
      const api = await connect();
      const { link, expires_at: expiresAt } = await api.createSignInLink();
      const address = addressOf(api.url, link);
      print({ url: address, expires_at: expiresAt }, () => [
        bold(address),
        dim(`It signs one browser in, with the rights of your key, until ${expiresAt}.`),
      ]);
    });
};
