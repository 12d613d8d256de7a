// What to tell the reader about an answer: how it goes, how it ended, and what to do next.

import { keyProblem } from "/static/key.js";

const WAITING = {
  queued: ({ position }) => `Waiting in the queue at position ${position}.`,
  prefill: ({ done, total }) => `The model reads the prompt: ${done} of ${total} tokens.`,
  recovering: () => "The engine is restarting. The answer goes on by itself.",
  gap: ({ from, to }) => `The server no longer has entries ${from} to ${to}. The text has a hole.`,
};

const ENDED = {
  stop: "",
  edited: "Edited by you",
  length: "Stopped at the length limit",
  cancelled: "Stopped",
  timeout: "Stopped at the time limit",
  shutdown: "The server shut down before the end",
  error: "The generation failed",
};

/** `{kind, text, action}`; `action` is one of "again", "read", "continue", "settings", or null. */
export function outcomeOf(answer) {
  const { message, reader } = answer;
  if (answer.isStopping && answer.isLive) return told("typing", "Stopping …");
  switch (message.status) {
    case "starting":
      return told("typing", "Sending the request …");
    case "running":
      return running(answer, reader);
    case "gone":
      return told("error", "The server no longer has this tape. It keeps a finished tape for a few minutes.", "again");
    case "failed":
      return failed(answer.failure);
    default:
      return ended(answer);
  }
}

function running(answer, reader) {
  const last = answer.log.last;
  switch (reader?.state) {
    case "cut":
      return told("cut", `You cut the connection after entry ${last}. The page resumes with Last-Event-ID.`);
    case "paused":
      return told("paused", `Paused after entry ${last}. Nobody reads, so the engine waits.`, "unpause");
    case "waiting":
      return told("lost", `Connection lost after entry ${last}. The page tries again by itself.`, "hurry");
    default:
  }
  if (answer.progress) return told("typing", WAITING[answer.progress.state]?.(answer.progress) ?? "");
  return told("typing", last ? "" : "Waiting for the first token …");
}

function failed(failure) {
  if (!failure) return told("error", "This answer was never finished.", "again");
  const { status, message, retryAfter, param } = failure;
  if (status === 401) return told("error", keyProblem(), "again");
  if (status === 422 && param && param !== "messages") return told("error", message, "settings");
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  return told("error", message + wait, "again");
}

function ended({ message, log }) {
  const reason = message.finish;
  if (message.error) return told("error", message.error, "again");
  if (!message.content.trim()) return empty(reason);
  const hole = log.gaps.map(({ from, to }) => ` The server had dropped entries ${from} to ${to}.`).join("");
  if (reason === "length") {
    return told("limit", `Stopped at the limit of ${message.usage?.completion_tokens ?? "?"} tokens.${hole}`, "continue");
  }
  if (reason === "shutdown" || reason === "timeout" || reason === "error") {
    return told("error", `${ENDED[reason]}.${hole}`, "again");
  }
  return told("done", `${ENDED[reason] ?? (reason ? `Done (${reason})` : "")}${hole}`.trim());
}

function empty(reason) {
  if (reason === "cancelled") return told("done", "You stopped it before the first word.", "again");
  if (reason === "stop") {
    return told(
      "empty",
      "The answer is empty: the model's first token was the end of the text. Ask again for another draw, or say more in your question.",
      "again",
    );
  }
  return told("empty", "The answer is empty: the length limit left no room for a visible word. Raise Length in the settings.", "settings");
}

const told = (kind, text, action = null) => ({ kind, text, action });
