/** `loraline dlq`: messages that could not be processed. */
import { type AddCommands, wholeNumber } from "../command.ts";
import { table, writeJson } from "../terminal.ts";

export const addDlqCommands: AddCommands = (program, { connect, print, terminal }) => {
  const dlq = program.command("dlq").description("failed messages: those that could not be processed");
  dlq
    .command("ls")
    .description("list failed messages, newest first")
    .action(async () => {
      const { data } = await (await connect()).listFailedMessages();
      print(data, () =>
        data.length === 0
          ? ["no failed messages"]
          : table([
              ["SEQ", "CONSUMER", "SUBJECT", "CODE", "REASON"],
              ...data.map(({ seq, durable, subject, code, message }) => [String(seq), durable, subject, code, message]),
            ]),
      );
    });

  dlq
    .command("show")
    .description("show one failed message: what it says and why it failed")
    .argument("<seq>", "its number in `dlq ls`", wholeNumber(1))
    .action(async (seq: number) => writeJson(terminal.out, await (await connect()).getFailedMessage({ seq })));

  dlq
    .command("redrive")
    .description("put a failed message back on its stream")
    .argument("<seq>", "its number in `dlq ls`", wholeNumber(1))
    .action(async (seq: number) => {
      const failed = await (await connect()).redriveFailedMessage({ seq });
      print(failed, () => [`redriven: ${failed.subject}`]);
    });

  dlq
    .command("delete")
    .alias("rm")
    .description("delete a failed message: it is never processed")
    .argument("<seq>", "its number in `dlq ls`", wholeNumber(1))
    .action(async (seq: number) => {
      const failed = await (await connect()).deleteFailedMessage({ seq });
      print(failed, () => [`deleted: ${failed.subject}`]);
    });
};
