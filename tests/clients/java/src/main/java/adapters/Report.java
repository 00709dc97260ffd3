package adapters;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** What an adapter tells the test: one JSON object per line of standard output. */
final class Report {
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.US_ASCII);

  private Report() {}

  /** The client delivered an event. */
  static void event(String type, String data, String id) {
    say("event", "type", type == null ? "message" : type, "data", data, "id", id == null ? "" : id);
  }

  /** The client spoke of trouble; it may go on by itself. */
  static void error(Object trouble) {
    say("error", "text", String.valueOf(trouble));
  }

  /** The client has given up, or is done: nothing will come any more. */
  static void end(Object why) {
    say("end", "text", String.valueOf(why));
    System.exit(0);
  }

  private static synchronized void say(String kind, String... members) {
    StringBuilder line = new StringBuilder("{\"kind\":").append(quoted(kind));
    for (int i = 0; i < members.length; i += 2) {
      line.append(',').append(quoted(members[i])).append(':').append(quoted(members[i + 1]));
    }
    OUT.print(line.append("}\n"));
    OUT.flush();
  }

  private static String quoted(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      json.append(c < ' ' || c > '~' || c == '"' || c == '\\' ? String.format("\\u%04x", (int) c) : c);
    }
    return json.append('"').toString();
  }
}
