package adapters;

import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.FaultEvent;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.StreamEvent;
import com.launchdarkly.eventsource.StreamException;
import java.net.URI;

/** okhttp-eventsource, told to come back by itself. */
public final class LaunchDarkly {
  private LaunchDarkly() {}

  public static void main(String[] arguments) {
    EventSource.Builder builder =
        new EventSource.Builder(URI.create(arguments[0])).errorStrategy(ErrorStrategy.alwaysContinue());
    if (!arguments[1].isEmpty()) {
      builder.lastEventId(arguments[1]);
    }
    try (EventSource source = builder.build()) {
      while (true) {
        StreamEvent event = source.readAnyEvent();
        if (event instanceof MessageEvent message) {
          Report.event(message.getEventName(), message.getData(), message.getLastEventId());
        } else if (event instanceof FaultEvent fault) {
          Report.error(fault.getCause());
        }
      }
    } catch (StreamException trouble) {
      Report.error(trouble);
    }
    Report.end("done");
  }
}
